"""Attribution: which pixels made the score, and do they add up?"""
