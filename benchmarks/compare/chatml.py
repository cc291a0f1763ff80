"""The chat template that TRL is given."""

# smollit's ChatML with the markers that TRL's `assistant_only_loss` needs, and nothing after the last response:
# otherwise TRL's DPO has a loss on the newline there, and smollit never has.
TRL_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{% if not (loop.last and message['role'] == 'assistant') %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
