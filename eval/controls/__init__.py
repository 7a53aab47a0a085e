"""What else could explain a result: our model with something taken away, identity, and confounds."""
