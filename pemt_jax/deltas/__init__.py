"""Small modules that act at the sites of a backbone."""
