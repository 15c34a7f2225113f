"""One time step of a cell, the loop over all steps, and the compilation of both.

Nothing here knows which cells or backends there are: those import from here.
"""
