"""What other teams read to talk with us: the topics, messages, keys and headers as an AsyncAPI 3.0 document.

- `document`: the document itself, from the messages' shapes and the topics' names.
- `examples`: one message of every kind, made by the code that makes the real ones.
- `written`: the document as JSON and as YAML.
- `page`: the document as a page for people.

Made whole here rather than from FastStream's own, which knows neither keys nor headers nor CloudEvents, and whose page
loads scripts from elsewhere. It never reads settings, and holds no secret: a server's security is told by its kind.
"""

from service.asyncapi.document import Server, Topics, document
from service.asyncapi.page import to_page
from service.asyncapi.serialize import to_json, to_yaml

__all__ = ["Server", "Topics", "document", "to_json", "to_page", "to_yaml"]
