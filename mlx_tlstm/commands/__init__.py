"""Commands of ``mlx-tlstm`` as modules; :mod:`mlx_tlstm.commands.main` brings them together."""
