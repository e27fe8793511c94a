"""Features: which learned features fire, and what do they do?"""
