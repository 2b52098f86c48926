// Clients for Node against a running embedded model; prints a line for each call, ends with 1 when
// one failed:  npm install --ignore-scripts && node node_clients.mjs http://127.0.0.1:8000

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { ChatOpenAI } from "@langchain/openai";
import { generateText, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const root = process.argv[2] ?? "http://127.0.0.1:8000";
const SUM = "What is 37 + 45?";
const WEATHER = "What is the weather in Berlin?";
const CITY = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const FUNCTION = { name: "get_weather", description: "Weather of a city", parameters: CITY };
const messages = (content) => [{ role: "user", content }];
const NEEDED = { temperature: 0, model: "default" };

let failed = 0;
async function call(client, what, run) {
  try {
    await run();
    console.log(`${client}: ${what}: passes`);
  } catch (error) {
    failed += 1;
    console.log(`${client}: ${what}: FAILS: ${error?.stack ?? error}`);
  }
}

function version(name) {
  const path = `./node_modules/${name}/package.json`;
  return `${name} ${JSON.parse(readFileSync(new URL(path, import.meta.url))).version}`;
}

async function openai() {
  const name = version("openai");
  const client = new OpenAI({ baseURL: `${root}/v1`, apiKey: "none", maxRetries: 0 });
  const tools = [{ type: "function", function: FUNCTION }];
  await call(name, "chat", async () => {
    const got = await client.chat.completions.create({ ...NEEDED, messages: messages(SUM) });
    assert.match(got.choices[0].message.content, /82/);
    assert.ok(got.usage.total_tokens > 10);
  });
  await call(name, "chat stream, usage", async () => {
    const stream = client.chat.completions.stream({
      ...NEEDED, messages: messages(SUM), stream_options: { include_usage: true },
    });
    assert.match(await stream.finalContent(), /82/);
    assert.ok((await stream.totalUsage()).completion_tokens > 0);
  });
  await call(name, "runTools", async () => {
    let asked;
    const runner = client.chat.completions.runTools({
      ...NEEDED, messages: messages(WEATHER), stream: true,
      tools: [{ type: "function", function: {
        ...FUNCTION, parse: JSON.parse,
        function: ({ city }) => { asked = city; return "17 degrees, rain"; },
      } }],
    });
    assert.ok((await runner.finalContent()).length > 0);
    assert.equal(asked, "Berlin");
  });
  await call(name, "named tool", async () => {
    const got = await client.chat.completions.create({
      ...NEEDED, messages: messages(WEATHER), tools,
      tool_choice: { type: "function", function: { name: "get_weather" } },
    });
    assert.equal(typeof JSON.parse(got.choices[0].message.tool_calls[0].function.arguments).city,
      "string");
  });
  await call(name, "json_schema", async () => {
    const got = await client.chat.completions.create({
      ...NEEDED, messages: messages("Answer in JSON with the city: I live in Oslo."),
      response_format: { type: "json_schema", json_schema: { name: "c", schema: CITY } },
    });
    assert.equal(typeof JSON.parse(got.choices[0].message.content).city, "string");
  });
  await call(name, "responses stream", async () => {
    const stream = client.responses.stream({ model: "default", temperature: 0, input: SUM });
    assert.match((await stream.finalResponse()).output_text, /82/);
  });
  await call(name, "completions, models", async () => {
    const got = await client.completions.create({ ...NEEDED, prompt: "Once", max_tokens: 8 });
    assert.equal(got.usage.completion_tokens, 8);
    assert.ok((await client.models.list()).data.length > 0);
  });
  await call(name, "errors, abort", async () => {
    await assert.rejects(
      client.chat.completions.create({ model: "gpt-9", messages: messages(SUM) }),
      OpenAI.NotFoundError,
    );
    const stream = await client.chat.completions.create({
      ...NEEDED, messages: messages(SUM), stream: true, ignore_eos: true, max_tokens: 1000,
    });
    for await (const _ of stream) break;
    assert.ok(stream.controller.signal.aborted);
  });
}

async function anthropic() {
  const name = version("@anthropic-ai/sdk");
  const client = new Anthropic({ baseURL: root, apiKey: "none", maxRetries: 0 });
  const asked = { model: "default", max_tokens: 100, temperature: 0 };
  const tools = [{ name: "get_weather", description: "Weather of a city", input_schema: CITY }];
  await call(name, "messages", async () => {
    const got = await client.messages.create({ ...asked, messages: messages(SUM) });
    assert.match(got.content[0].text, /82/);
  });
  await call(name, "stream with a tool, and its result", async () => {
    const first = await client.messages
      .stream({ ...asked, messages: messages(WEATHER), tools }).finalMessage();
    assert.equal(first.stop_reason, "tool_use");
    const use = first.content.find((block) => block.type === "tool_use");
    assert.deepEqual(use.input, { city: "Berlin" });
    const result = { type: "tool_result", tool_use_id: use.id, content: "17 degrees, rain" };
    const second = await client.messages.create({
      ...asked, tools, messages: [
        ...messages(WEATHER), { role: "assistant", content: first.content },
        { role: "user", content: [result] },
      ],
    });
    assert.equal(second.stop_reason, "end_turn");
  });
  await call(name, "countTokens, errors", async () => {
    const count = { model: "default", messages: messages(SUM) };
    assert.ok((await client.messages.countTokens(count)).input_tokens > 5);
    await assert.rejects(
      client.messages.create({ ...asked, messages: messages("word ".repeat(3000)) }),
      /prompt is too long: \d+ tokens > \d+ maximum/,
    );
  });
}

async function vercel() {
  const name = `${version("ai")}, ${version("@ai-sdk/openai-compatible")}`;
  const provider = createOpenAICompatible({
    name: "appliance", baseURL: `${root}/v1`, includeUsage: true, supportsStructuredOutputs: true,
  });
  const model = provider("default");
  const asked = { model, temperature: 0, maxRetries: 0 };
  await call(name, "generateText", async () => {
    const got = await generateText({ ...asked, prompt: SUM });
    assert.match(got.text, /82/);
    assert.ok(got.usage.totalTokens > 10);
  });
  await call(name, "streamText", async () => {
    const got = streamText({ ...asked, prompt: SUM });
    let text = "";
    for await (const part of got.textStream) text += part;
    assert.match(text, /82/);
    assert.ok((await got.usage).outputTokens > 0);
  });
  await call(name, "streamText with a tool, two steps", async () => {
    let city;
    const got = streamText({
      ...asked, prompt: WEATHER, stopWhen: stepCountIs(3),
      tools: { get_weather: tool({
        description: "Weather of a city", inputSchema: z.object({ city: z.string() }),
        execute: async (input) => { city = input.city; return "17 degrees, rain"; },
      }) },
    });
    assert.ok((await got.text).length > 0);
    assert.equal(city, "Berlin");
    assert.equal((await got.steps).length, 2);
  });
}

async function langchain() {
  const name = version("@langchain/openai");
  const model = new ChatOpenAI({
    ...NEEDED, apiKey: "none", maxRetries: 0, configuration: { baseURL: `${root}/v1` },
  });
  await call(name, "invoke, stream", async () => {
    const got = await model.invoke(SUM);
    assert.match(got.content, /82/);
    assert.ok(got.usage_metadata.total_tokens > 10);
    let text = "";
    for await (const chunk of await model.stream(SUM)) text += chunk.content;
    assert.equal(text, got.content);
  });
  await call(name, "bindTools", async () => {
    const got = await model.bindTools([{ type: "function", function: FUNCTION }]).invoke(WEATHER);
    assert.deepEqual(got.tool_calls[0].args, { city: "Berlin" });
  });
  await call(name, "withStructuredOutput", async () => {
    const schema = z.object({ city: z.string() });
    const got = await model.withStructuredOutput(schema).invoke("JSON with the city: Oslo");
    assert.equal(typeof got.city, "string");
  });
}

for (const client of [openai, anthropic, vercel, langchain]) await client();
process.exit(failed ? 1 : 0);
