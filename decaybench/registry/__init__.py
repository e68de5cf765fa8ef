"""Every name a study can use: what it is, which options it takes, where its code is."""
