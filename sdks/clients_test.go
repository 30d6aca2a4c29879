package sdks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/test/bufconn"

	"example.com/clarifaihttp"
)

// A caller is a client under test.
type caller interface {
	// list calls ListModelTypes.
	list(ctx context.Context) error
	// post calls PostModelOutputs with a text of size bytes, and checks that it
	// comes back.
	post(ctx context.Context, size int) error
	// generate calls GenerateModelOutputs, and returns when the first message
	// came.
	generate(ctx context.Context) (first time.Duration, err error)
	// stream calls StreamModelOutputs, and returns when the header came, for
	// which it waits before it sends a message.
	stream(ctx context.Context) (header time.Duration, err error)
}

// connections are the clients and the ways that lead to a fake. A bare one has
// nothing of ours on its way.
var connections = []struct {
	name       string
	bare, ours func(*testing.T, *fake) caller
}{
	{"grpc-go over the Transport", grpcBare, grpcOverTransport},
	{"grpc-go behind the proxy", grpcBare, func(t *testing.T, f *fake) caller { return dialGRPC(t, startProxy(t, f)) }},
	{"connect-go over the Transport", connectBare, connectOverTransport},
	{"connect-go behind the proxy", connectBare, func(t *testing.T, f *fake) caller { return dialConnect(t, h2cTransport(t), "http://"+startProxy(t, f)) }},
	{"clarifai-nodejs-grpc behind the proxy",
		func(t *testing.T, f *fake) caller { return nodeClient(t, f.h2c.Listener.Addr().String()) },
		func(t *testing.T, f *fake) caller { return nodeClient(t, startProxy(t, f)) }},
}

// raw is a codec for messages that are bytes already.
type raw struct{}

func (raw) Name() string                    { return "proto" }
func (raw) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = append([]byte(nil), b...); return nil }

var (
	_ encoding.Codec = raw{}
	_ connect.Codec  = raw{}
)

const service = "/clarifai.api.V2/"

// check holds a response against the text that was sent.
func check(response []byte, size int) error {
	if c := code(response); c != 10000 {
		return fmt.Errorf("status code %d", c)
	}
	if got := len(get(response, 2, 6, 13, 1)); got != size {
		return fmt.Errorf("%d bytes came back of %d", got, size)
	}
	return nil
}

// transport returns a Transport to f, which speaks HTTP/2 over TLS.
func transport(f *fake) *clarifaihttp.Transport {
	return clarifaihttp.NewTransport(f.tls.Client().Transport, clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Transit: f.transit}),
		clarifaihttp.WithReplayBuffer(4<<20), clarifaihttp.WithLogger(quiet))
}

func h2cTransport(t *testing.T) *http.Transport {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// A grpcClient is grpc-go's.
type grpcClient struct{ *grpc.ClientConn }

func dialGRPC(t *testing.T, address string, opts ...grpc.DialOption) caller {
	opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(8<<20)))
	conn, err := grpc.NewClient("passthrough:///"+address, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return grpcClient{conn}
}

func grpcBare(t *testing.T, f *fake) caller { return dialGRPC(t, f.h2c.Listener.Addr().String()) }

// grpcOverTransport has grpc-go, which has a transport of its own, dial a
// reverse proxy in its own process, through memory.
func grpcOverTransport(t *testing.T, f *fake) caller {
	upstream, err := url.Parse(f.tls.URL)
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(1 << 20)
	server := &http.Server{
		Handler: &httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(upstream) },
			Transport: transport(f),
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				w.Header().Set("Content-Type", "application/grpc")
				w.Header().Set("Grpc-Status", "14")
			},
		},
		Protocols: new(http.Protocols),
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: 250, MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 16 << 20},
	}
	server.Protocols.SetUnencryptedHTTP2(true)
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return dialGRPC(t, "memory", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
}

func (c grpcClient) list(ctx context.Context) error {
	request, response := []byte{}, []byte{}
	if err := c.Invoke(ctx, service+"ListModelTypes", &request, &response); err != nil {
		return err
	}
	return check(response, 0)
}

func (c grpcClient) post(ctx context.Context, size int) error {
	request, response := modelOutputs(size), []byte{}
	if err := c.Invoke(ctx, service+"PostModelOutputs", &request, &response); err != nil {
		return err
	}
	return check(response, size)
}

func (c grpcClient) generate(ctx context.Context) (first time.Duration, err error) {
	begin := time.Now()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, service+"GenerateModelOutputs")
	if err != nil {
		return 0, err
	}
	request, response := modelOutputs(5), []byte{}
	if err := s.SendMsg(&request); err != nil {
		return 0, err
	}
	if err := s.CloseSend(); err != nil {
		return 0, err
	}
	for n := 0; ; n++ {
		if err := s.RecvMsg(&response); err != nil {
			return first, ended(n, err)
		}
		if n == 0 {
			first = time.Since(begin)
		}
		if err := check(response, 5); err != nil {
			return 0, err
		}
	}
}

// ended returns what is wrong with a stream that ended with err.
func ended(messages int, err error) error {
	if err == io.EOF && messages == streamed {
		return nil
	}
	return fmt.Errorf("after %d messages: %w", messages, err)
}

func (c grpcClient) stream(ctx context.Context) (header time.Duration, err error) {
	begin := time.Now()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, service+"StreamModelOutputs")
	if err != nil {
		return 0, err
	}
	if _, err := s.Header(); err != nil {
		return 0, err
	}
	header = time.Since(begin)
	request, response := modelOutputs(5), []byte{}
	if err := s.SendMsg(&request); err != nil {
		return 0, err
	}
	if err := s.RecvMsg(&response); err != nil {
		return 0, err
	}
	if err := s.CloseSend(); err != nil {
		return 0, err
	}
	if err := s.RecvMsg(new([]byte)); err != io.EOF {
		return 0, err
	}
	return header, check(response, 5)
}

// A connectClient is connect-go's, by the gRPC protocol.
type connectClient func(method string) *connect.Client[[]byte, []byte]

func dialConnect(t *testing.T, rt http.RoundTripper, url string) caller {
	client := &http.Client{Transport: rt}
	return connectClient(func(method string) *connect.Client[[]byte, []byte] {
		return connect.NewClient[[]byte, []byte](client, url+service+method, connect.WithGRPC(), connect.WithCodec(raw{}))
	})
}

func connectBare(t *testing.T, f *fake) caller { return dialConnect(t, h2cTransport(t), f.h2c.URL) }

func connectOverTransport(t *testing.T, f *fake) caller {
	return dialConnect(t, transport(f), f.tls.URL)
}

func (c connectClient) list(ctx context.Context) error {
	response, err := c("ListModelTypes").CallUnary(ctx, connect.NewRequest(new([]byte)))
	if err != nil {
		return err
	}
	return check(*response.Msg, 0)
}

func (c connectClient) post(ctx context.Context, size int) error {
	request := modelOutputs(size)
	response, err := c("PostModelOutputs").CallUnary(ctx, connect.NewRequest(&request))
	if err != nil {
		return err
	}
	return check(*response.Msg, size)
}

func (c connectClient) generate(ctx context.Context) (first time.Duration, err error) {
	begin := time.Now()
	request := modelOutputs(5)
	s, err := c("GenerateModelOutputs").CallServerStream(ctx, connect.NewRequest(&request))
	if err != nil {
		return 0, err
	}
	defer s.Close()
	n := 0
	for ; s.Receive(); n++ {
		if n == 0 {
			first = time.Since(begin)
		}
		if err := check(*s.Msg(), 5); err != nil {
			return 0, err
		}
	}
	if err = s.Err(); err == nil {
		err = io.EOF
	}
	return first, ended(n, err)
}

func (c connectClient) stream(ctx context.Context) (header time.Duration, err error) {
	begin := time.Now()
	s := c("StreamModelOutputs").CallBidiStream(ctx)
	defer s.CloseResponse()
	if err := s.Send(nil); err != nil { // the header alone
		return 0, err
	}
	s.ResponseHeader() // waits for it
	header = time.Since(begin)
	request := modelOutputs(5)
	if err := s.Send(&request); err != nil {
		return 0, err
	}
	response, err := s.Receive()
	if err != nil {
		return 0, err
	}
	if err := s.CloseRequest(); err != nil {
		return 0, err
	}
	if _, err := s.Receive(); !errors.Is(err, io.EOF) {
		return 0, err
	}
	return header, check(*response, 5)
}
