"""Transport: is a feature carried, or made anew?"""
