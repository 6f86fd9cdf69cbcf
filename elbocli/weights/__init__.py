"""`elbo weights`: weightings listed, shown, checked, plotted."""
