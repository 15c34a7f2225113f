"""Models: a layer with a read-out.

They can be saved as folders and shared on the Hugging Face hub; they read inputs one by one and
write text.
"""
