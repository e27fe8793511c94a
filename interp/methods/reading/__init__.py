"""Reading: what does the model say, and what does it hold inside?"""
