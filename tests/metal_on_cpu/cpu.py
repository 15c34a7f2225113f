"""Translates Metal kernels for clang: the text that it checks, and the text that it compiles.

Metal's names are in native/metal_cpu.h. Threadgroup variables are rewritten; a function with a
fixed name is added that calls the kernel.
"""

from __future__ import annotations

import itertools
import re

from metal_on_cpu.errors import MslError
from metal_on_cpu.source import GeneratedSource
from mlx_tlstm.kernels.cuda import rewrite_definitions

_MLX_UTILS = '#include "mlx/backend/metal/kernels/utils.h"\n'
#: MLX's names for the 16-bit types, also where its utils.h does not define them.
_ALIASES = "typedef bfloat bfloat16_t;\ntypedef half float16_t;\n"
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
#: Declared between the library's headers and the kernel's.
USER_TEXT = "metal_on_cpu_user_text"


def text_to_check(generated: GeneratedSource, source_file: str, with_mlx_utils: bool) -> str:
    """The text for the type check.

    Raises:
        MslError: for a threadgroup variable that Metal does not allow.
    """
    ending = ""
    if generated.template:
        name = generated.kernel_name + generated.template_arguments
        ending = f"template decltype({name}) {name};\n"
    return _text(generated, source_file, with_mlx_utils, ending)


def text_to_run(generated: GeneratedSource, source_file: str, with_mlx_utils: bool) -> str:
    """The text to compile, with a C function that calls the kernel as one thread.

    Raises:
        MslError: for a threadgroup variable that Metal does not allow.
    """
    arguments = [b.argument(f"buffers[{i}]") for i, b in enumerate(generated.buffers)]
    arguments += [f"thread_->{name}" for name in generated.attributes]
    ending = (
        'extern "C" __attribute__((visibility("hidden"), no_sanitize("thread")))\n'
        "void msl_entry(void** buffers, const MslThread* thread_) {\n"
        f"  {generated.kernel_name}{generated.template_arguments}({', '.join(arguments)});\n}}\n"
    )
    return _text(generated, source_file, with_mlx_utils, ending)


def _text(generated: GeneratedSource, source_file: str, with_mlx_utils: bool, ending: str) -> str:
    numbers = itertools.count()

    def spelling(element_type: str, name: str, dimensions: str) -> str:
        return (
            f"typedef {element_type} {name}__tg{dimensions}; "
            f'threadgroup {name}__tg& {name} = MSL_TG({name}__tg, {next(numbers)}, "{name}");'
        )

    body = _COMMENT.sub(lambda comment: " " + "\n" * comment[0].count("\n"), generated.body)
    try:
        body = rewrite_definitions(body, spelling)
    except ValueError as error:
        raise MslError(f"{source_file}: {error}") from error
    return (
        '#include "metal_cpu.h"\nusing namespace metal;\n'
        + (_ALIASES + _MLX_UTILS if with_mlx_utils else _ALIASES)
        + f"struct {USER_TEXT};\n"
        + f'#line 1 "{source_file}.header"\n{generated.header}\n'
        + f'#line 1 "<signature>"\n{generated.template}{generated.signature}'
        + f'#line 1 "{source_file}"\n{body}\n}}\n'
        + f'#line 1 "<entry>"\n{ending}'
    )
