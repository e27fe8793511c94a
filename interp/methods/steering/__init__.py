"""Steering: what happens if a direction is pushed?"""
