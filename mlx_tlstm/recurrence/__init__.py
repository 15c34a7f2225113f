"""One time step of a cell, the loop over all steps, and the compilation of both.

The steps here are the tLSTM's and the tRNN's. What computes them, and other cells, import from
here.
"""
