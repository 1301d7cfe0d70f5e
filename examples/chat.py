"""Answers messages of a chat. The artifact's path is the argument; default: build/quickstart."""

import sys

from llmc.runtime import load

artifact = sys.argv[1] if len(sys.argv) > 1 else "build/quickstart"
# A model that was trained to chat brings its template; the embedded one was not, so it gets one of ours.
TEMPLATE = """{% for message in messages %}# {{ message.role }}: {{ message.content }}
{% endfor %}# assistant:"""

with load(artifact, chat_template=TEMPLATE) as model:
    messages = [{"role": "system", "content": "You know Python."}]
    for question in ("What does os.getcwd return?", "And os.sep?"):
        messages.append({"role": "user", "content": question})
        answer = model.chat(messages, max_new_tokens=12, stop="\n", temperature=0)
        print(f"user: {question}\nassistant: {answer.text}")
        messages.append({"role": "assistant", "content": answer.text})
