'use strict';

// Runs Clarifai's generated gRPC client for the tests of the Go module around:
// a command a line on stdin, {id, op, address, size} in JSON, and a result a
// line on stdout, {id, error, ms}.

const readline = require('readline');
const grpc = require('@grpc/grpc-js');
const { V2Client } = require('clarifai-nodejs-grpc/proto/clarifai/api/service_grpc_pb');
const service = require('clarifai-nodejs-grpc/proto/clarifai/api/service_pb');
const resources = require('clarifai-nodejs-grpc/proto/clarifai/api/resources_pb');

const clients = new Map(); // by address
const calls = new Map(); // under way, by id

function client(address) {
  if (!clients.has(address)) {
    clients.set(address, new V2Client(address, grpc.credentials.createInsecure(), {
      'grpc.max_receive_message_length': -1,
      'grpc.max_send_message_length': -1,
      'grpc.use_local_subchannel_pool': 1,
    }));
  }
  return clients.get(address);
}

function metadata() {
  const m = new grpc.Metadata();
  m.set('authorization', 'Key fake');
  return m;
}

function outputsRequest(size) {
  const text = new resources.Text();
  text.setRaw('x'.repeat(size));
  const data = new resources.Data();
  data.setText(text);
  const input = new resources.Input();
  input.setData(data);
  const request = new service.PostModelOutputsRequest();
  request.setModelId('model');
  request.addInputs(input);
  return request;
}

// wrong returns what is wrong with a response, '' if nothing.
function wrong(response, size) {
  const status = response.getStatus();
  if (status.getCode() !== 10000) {
    return `status code ${status.getCode()}: ${status.getDescription()}`;
  }
  if (size === undefined) {
    return response.getModelTypesList()[0].getId() === 'visual-classifier' ? '' : 'no model type';
  }
  const got = response.getOutputsList()[0].getData().getText().getRaw();
  return got === 'x'.repeat(size) ? '' : `${got.length} bytes came back of ${size}`;
}

const ops = {
  list(c, size, done) {
    return c.listModelTypes(new service.ListModelTypesRequest(), metadata(), (err, response) => {
      done(err ? err.message : wrong(response));
    });
  },
  post(c, size, done) {
    return c.postModelOutputs(outputsRequest(size), metadata(), (err, response) => {
      done(err ? err.message : wrong(response, size));
    });
  },
  generate(c, size, done) {
    const call = c.generateModelOutputs(outputsRequest(5), metadata());
    let n = 0, ms = 0, error = '';
    const begin = performance.now();
    call.on('data', (response) => {
      if (n++ === 0) {
        ms = performance.now() - begin;
      }
      error = error || wrong(response, 5);
    });
    call.on('error', (err) => done(err.message));
    call.on('end', () => done(error || (n === 3 ? '' : `${n} messages`), ms));
    return call;
  },
  stream(c, size, done) {
    const call = c.streamModelOutputs(metadata());
    let ms = 0, n = 0, error = '';
    const begin = performance.now();
    call.on('metadata', () => {
      ms = performance.now() - begin;
      call.write(outputsRequest(5));
    });
    call.on('data', (response) => {
      n++;
      error = error || wrong(response, 5);
      call.end();
    });
    call.on('error', (err) => done(err.message));
    call.on('end', () => done(error || (n === 1 ? '' : `${n} messages`), ms));
    return call;
  },
};

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const { id, op, address, size } = JSON.parse(line);
  if (op === 'cancel') {
    const call = calls.get(id);
    if (call) {
      call.cancel();
    }
    return;
  }
  let over = false;
  const done = (error, ms) => {
    if (!over) {
      over = true;
      calls.delete(id);
      process.stdout.write(JSON.stringify({ id, error, ms: ms || 0 }) + '\n');
    }
  };
  calls.set(id, ops[op](client(address), size || 0, done));
}).on('close', () => process.exit(0));
