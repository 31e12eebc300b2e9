"""`dpbench check`: does a method keep the contract, and decide as the official code does?"""

BACKBONES = ("llava", "llava_next", "qwen2_5_vl", "toy-llava")
"""What methods are checked on: random miniatures of the three families, and the embedded backbone."""
