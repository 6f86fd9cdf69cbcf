"""`elbo merge`: join several datasets into one."""
