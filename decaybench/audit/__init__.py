"""Shows which parameters of any model a recipe or an optimizer decays."""
