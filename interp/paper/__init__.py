"""The DeepLIFT paper's own experiments (Shrikumar et al. 2017, arXiv:1704.02685), to be run again."""
