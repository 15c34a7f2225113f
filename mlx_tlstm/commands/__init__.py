"""Commands of ``mlx-tlstm`` as modules; :mod:`mlx_tlstm.cli` brings them together."""
