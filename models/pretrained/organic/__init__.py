"""Data and weights of the general organic potential."""
