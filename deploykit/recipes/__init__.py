"""Recipes: a file that says which networks are exported, checked, evaluated and measured.

The keys of a recipe are the options of the commands, which the command line hands over as
`CommandOption`s: a new option of a command is a key here without a line of code.
"""
