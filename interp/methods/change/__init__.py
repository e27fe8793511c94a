"""Interventions: what if the input, the activations or the weights were different?"""
