"""Likelihoods of images under a run.

estimate.py gives the variational bound, ode.py −log p by the probability-flow ODE; judge.py checks theorem 1 of Kingma & Gao.
measure.py asks the network at random noise levels; result.py declares the records that the command prints. Begin with estimate.py.
"""
