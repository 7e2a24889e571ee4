"""Tasks that a model is measured on: instructions that are checked by rules, and multiple choice by log-probs.

counting         words, sentences, bullet points, … of a text
constraints      the kinds of constraints, each a rule on a text
languages        which language a text is in, by script and small words
ifeval           IFEval's instructions as such constraints
follow           strict and loose, and the shares that are reported
rows             rows of files and hub sets
own_instructions, own_choices   the built-in sets
choices          log-probs of choices, how they are made comparable, letters
benchmark        a task with its rows, ready to measure a model
"""
