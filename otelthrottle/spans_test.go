package otelthrottle_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/httptrace/otelhttptrace"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// TestSpans shows what the spans of otelhttp say of a request that waits for
// 2 s, is throttled, and is served after a pause. Outside the Transport there is
// one span, with the waits in it. Inside there is one for each attempt, without
// the waits. With otelhttptrace the one outside has spans for connections, which
// begin when the wait is over.
func TestSpans(t *testing.T) {
	for _, tt := range []struct {
		name string
		over func(base http.RoundTripper, account *clarifaihttp.Throttle, opts ...otelhttp.Option) http.RoundTripper
		opts []otelhttp.Option
		want []string
	}{
		{"outside", outside, nil, []string{
			"HTTP GET 200: 0s to 19s",
		}},
		{"inside", inside, nil, []string{
			"HTTP GET 429: 2s to 3s",
			"HTTP GET 200: 18s to 19s",
		}},
		{"outside, with otelhttptrace", outside, []otelhttp.Option{otelhttp.WithClientTrace(func(ctx context.Context) *httptrace.ClientTrace {
			return otelhttptrace.NewClientTrace(ctx)
		})}, []string{
			"HTTP GET 200: 0s to 19s",
			"http.getconn: 2s to 2s",
			"http.headers: 2s to 2s",
			"http.send: 2s to 2s",
			"http.receive: 3s to 3s",
			"http.getconn: 18s to 18s",
			"http.headers: 18s to 18s",
			"http.send: 18s to 18s",
			"http.receive: 19s to 19s",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				handler := new(throttletest.Handler)
				server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(time.Second)
					handler.ServeHTTP(w, r)
				}))
				defer server.Close()
				spans := tracetest.NewSpanRecorder()
				provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
				account := &clarifaihttp.Throttle{Limiter: waits(2 * time.Second)}

				begin := time.Now()
				client := &http.Client{Transport: tt.over(server.Client().Transport, account, append(tt.opts, otelhttp.WithTracerProvider(provider))...)}
				handler.HaltFor(4 * time.Second)
				resp, err := client.Get(server.URL)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body) // so that its connection is idle again, which ends the last span
				resp.Body.Close()
				synctest.Wait()

				ended := spans.Ended()
				slices.SortStableFunc(ended, func(a, b sdktrace.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
				var got []string
				for _, span := range ended {
					name := span.Name()
					for _, kv := range span.Attributes() {
						if kv.Key == "http.response.status_code" {
							name = fmt.Sprint(name, " ", kv.Value.AsInt64())
						}
					}
					got = append(got, fmt.Sprintf("%s: %v to %v", name, span.StartTime().Sub(begin), span.EndTime().Sub(begin)))
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("spans\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(tt.want, "\n\t"))
				}
			})
		})
	}
}

func outside(base http.RoundTripper, account *clarifaihttp.Throttle, opts ...otelhttp.Option) http.RoundTripper {
	return otelhttp.NewTransport(clarifaihttp.NewTransport(base, clarifaihttp.WithThrottle(account), quiet), opts...)
}

func inside(base http.RoundTripper, account *clarifaihttp.Throttle, opts ...otelhttp.Option) http.RoundTripper {
	return clarifaihttp.NewTransport(otelhttp.NewTransport(base, opts...), clarifaihttp.WithThrottle(account), quiet)
}

// waits is a Limiter that has the first request wait.
func waits(d time.Duration) *waiter { return &waiter{d} }

type waiter struct{ d time.Duration }

func (w *waiter) Wait(context.Context) error {
	time.Sleep(w.d)
	w.d = 0
	return nil
}
