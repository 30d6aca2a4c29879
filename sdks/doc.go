// Package sdks tests real gRPC clients over a clarifaihttp.Transport and behind
// examples/proxy: grpc-go, connect-go and clarifai-nodejs-grpc, Clarifai's own.
// They call a fake of Clarifai's V2 service, over real sockets and in real time.
//
// There is nothing in it to import. It is a module of its own so that
// clarifaihttp does not depend on what it tests. The Node client needs node and
// npm ci in the folder nodejs; without these its tests are skipped.
package sdks
