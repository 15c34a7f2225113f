"""What ``mlx-tlstm check`` finds out about a device: whether everything is right, and how fast.

:mod:`~mlx_tlstm.checking.chains` are launches of single kernels, :mod:`~mlx_tlstm.checking.passes`
passes of layers, timed at the tasks' sizes by :mod:`~mlx_tlstm.checking.settings`;
:mod:`~mlx_tlstm.checking.comparisons` compares what has to agree, and
:mod:`~mlx_tlstm.checking.survey` runs all of it into a record.
"""
