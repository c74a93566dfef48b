"""How d l_i along u is got for every sample l_i: forward mode of our own over recorded operators, and what is below."""
