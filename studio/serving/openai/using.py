"""How a program asks a deployment: what its page shows to copy, for curl and the official clients."""

import json
from dataclasses import dataclass
from textwrap import dedent

KEY = "STUDIO_API_KEY"
"""The variable of the caller's environment that holds the key: none stands in a program."""


@dataclass(frozen=True)
class Way:
    name: str
    install: str
    """What must be there first; empty where nothing is needed."""
    code: str


def ways(address: str, model: str) -> list[Way]:
    """`address` ends in /v1."""
    asked = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]}, ensure_ascii=False)
    curl = f'curl {address}/chat/completions -H "Authorization: Bearer ${KEY}" \\\n  -H "Content-Type: application/json" -d \'{asked}\''
    python = f"""\
        import os
        from openai import OpenAI

        client = OpenAI(base_url="{address}", api_key=os.environ["{KEY}"])
        answer = client.chat.completions.create(
            model="{model}",
            messages=[{{"role": "user", "content": "Hello"}}],
        )
        print(answer.choices[0].message.content)"""
    javascript = f"""\
        import OpenAI from "openai";

        const client = new OpenAI({{ baseURL: "{address}", apiKey: process.env.{KEY} }});
        const answer = await client.chat.completions.create({{
          model: "{model}",
          messages: [{{ role: "user", content: "Hello" }}],
        }});
        console.log(answer.choices[0].message.content);"""
    return [
        Way("curl", "", curl),
        Way("Python", "pip install openai", dedent(python)),
        Way("JavaScript", "npm install openai", dedent(javascript)),
    ]
