"""Radiology phantoms: images drawn from a seed, with captions and questions that are true of them.

`facts` draws what is true, `drawing` makes the pixels, `captions` and `questions` say it in words, and `reader`
hands them over as samples. Phantoms look like radiology from afar and say nothing of medicine.
"""
