"""Class activation maps: where in the image is the evidence for a class?"""
