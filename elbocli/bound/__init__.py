"""`elbo bound`: estimate -log p of images, and check Kingma & Gao's theorem 1.

`open_measurement` in measure.py opens a run and images as a RunMeasurement, whose `draw` returns the network's errors at random
noise levels, as Draws. In estimate.py, a Sweep adds up the Draws of all images for the bound, and the estimators of -log p use a
Sweep; judge.py turns Draws into the two sides of the theorem, and the excess over the least possible errors.
result.py declares the resulting records.
"""
