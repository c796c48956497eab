// Parses each file named, with AsyncAPI's own parser, and prints what it has to say as JSON, a line each.
// The parser lives in a cache outside the tree; its folder is the first argument.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const [folder, ...files] = process.argv.slice(2);
const { Parser } = createRequire(`${folder}/package.json`)("@asyncapi/parser");
const parser = new Parser();

for (const file of files) {
  const { document, diagnostics } = await parser.parse(await readFile(file, "utf8"));
  const said = diagnostics.map(({ severity, code, path, message }) => ({ severity, code, path: path.join("."), message }));
  console.log(JSON.stringify({ parsed: document !== undefined, said }));
}
