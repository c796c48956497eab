"""The AsyncAPI 3.0 document for other teams: topics, messages, keys and headers.

- `document`: the document itself, from the schemas of the messages and the names of the topics.
- `examples`: one message of every kind, made by the production code.
- `serialize`: the document as JSON and as YAML.
- `page`: the document as an HTML page.

FastStream's own document is not used: it has neither keys nor headers nor CloudEvents, and its page loads scripts from
the internet. The document never reads settings and contains no secret: of a server's security only the protocol and the
mechanism.
"""

from service.asyncapi.document import Server, Topics, document
from service.asyncapi.page import to_page
from service.asyncapi.serialize import to_json, to_yaml

__all__ = ["Server", "Topics", "document", "to_json", "to_page", "to_yaml"]
