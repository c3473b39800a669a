"""Plain chat templates for models that carry none, by name: (Jinja source, stop strings). Wordings as their projects published them.

Every answer ends with the model's end token. A model without one learns to write the stop string, which otherwise opens the next turn.
human_assistant: Bai et al. 2022, arXiv:2204.05862; alpaca: Stanford Alpaca 2023; vicuna: FastChat 1.1; baichuan: Baichuan-13B-Chat; chatglm: ChatGLM2-6B.
"""

_REST = "{% else %}{{ raise_exception('a plain template writes system, user and assistant turns, not ' ~ m.role) }}{% endif %}{% endfor %}"

_HUMAN_ASSISTANT = (
    r"""{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content ~ '\n\n' }}"""
    r"""{% elif m.role == 'user' %}{{ 'Human: ' ~ m.content ~ '\n\n' }}"""
    r"""{% elif m.role == 'assistant' %}Assistant:{% generation %}{{ ' ' ~ m.content ~ (eos_token or ('\n\nHuman:' if loop.last else '')) }}{% endgeneration %}"""
    r"""{{ '' if loop.last else '\n\n' }}""" + _REST + "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_ALPACA = (
    r"""{{ bos_token }}{% if messages[0].role != 'system' %}"""
    r"""{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n' }}{% endif %}"""
    r"""{% for m in messages %}{% if m.role == 'system' %}{{ m.content ~ '\n\n' }}"""
    r"""{% elif m.role == 'user' %}{{ '### Instruction:\n' ~ m.content ~ '\n\n' }}"""
    r"""{% elif m.role == 'assistant' %}{{ '### Response:\n' }}{% generation %}{{ m.content ~ (eos_token or ('\n\n### Instruction:' if loop.last else '')) }}"""
    r"""{% endgeneration %}{{ '' if loop.last else '\n\n' }}"""
    + _REST
    + r"""{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"""
)
_VICUNA = (
    r"""{{ bos_token }}{% if messages[0].role != 'system' %}{{ 'A chat between a curious user and an artificial intelligence assistant. """
    r"""The assistant gives helpful, detailed, and polite answers to the user\'s questions. ' }}{% endif %}"""
    r"""{% for m in messages %}{% if m.role == 'system' %}{{ m.content ~ ' ' }}"""
    r"""{% elif m.role == 'user' %}{{ 'USER: ' ~ m.content ~ ' ' }}"""
    r"""{% elif m.role == 'assistant' %}ASSISTANT:{% generation %}{{ ' ' ~ m.content ~ (eos_token or '</s>') }}{% endgeneration %}"""
    + _REST
    + "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_BAICHUAN = (
    r"""{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"""
    r"""{% elif m.role == 'user' %}{{ '<reserved_102>' ~ m.content }}"""
    r"""{% elif m.role == 'assistant' %}<reserved_103>{% generation %}{{ m.content ~ (eos_token or ('<reserved_102>' if loop.last else '')) }}{% endgeneration %}"""
    + _REST
    + "{% if add_generation_prompt %}<reserved_103>{% endif %}"
)
_CHATGLM = (
    r"""{{ bos_token }}{% set n = namespace(round=0) %}{% for m in messages %}{% if m.role == 'system' %}{{ m.content ~ '\n\n' }}"""
    r"""{% elif m.role == 'user' %}{% set n.round = n.round + 1 %}{{ '[Round ' ~ n.round ~ ']\n\n问：' ~ m.content ~ '\n\n' }}"""
    r"""{% elif m.role == 'assistant' %}答：{% generation %}{{ m.content ~ (eos_token or ('\n\n[Round ' if loop.last else '')) }}{% endgeneration %}"""
    r"""{{ '' if loop.last else '\n\n' }}""" + _REST + "{% if add_generation_prompt %}答：{% endif %}"
)

PLAIN: dict[str, tuple[str, tuple[str, ...]]] = {
    "human_assistant": (_HUMAN_ASSISTANT, ("\n\nHuman:",)),
    "alpaca": (_ALPACA, ("\n\n### Instruction:",)),
    "vicuna": (_VICUNA, ("</s>", "USER:")),
    "baichuan": (_BAICHUAN, ("<reserved_102>",)),
    "chatglm": (_CHATGLM, ("\n\n[Round ",)),
}
