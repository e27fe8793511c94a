"""Circuits: which parts of the model did it, and how do they work together?"""
