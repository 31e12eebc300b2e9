"""`dpbench check`: does a method keep the contract, and decide as the official code does?"""
