package otelthrottle_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/otelthrottle"
	"example.com/clarifaihttp/throttletest"
)

var quiet = clarifaihttp.WithLogger(slog.New(slog.DiscardHandler))

// collect returns what the reader sees: one line for each value that is not 0.
func collect(t *testing.T, reader sdkmetric.Reader) []string {
	t.Helper()
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &rm); err != nil {
		t.Fatal(err)
	}
	lines := map[string]bool{}
	for _, scope := range rm.ScopeMetrics {
		for _, m := range scope.Metrics {
			add := func(kind string, attrs attribute.Set, value any) {
				if fmt.Sprint(value) != "0" {
					text := attrs.Encoded(attribute.DefaultEncoder())
					lines[strings.TrimSpace(fmt.Sprintf("%s %v %s %s %s", m.Name, value, m.Unit, kind, text))] = true
				}
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					add(kind(data.IsMonotonic), p.Attributes, p.Value)
				}
			case metricdata.Sum[float64]:
				for _, p := range data.DataPoints {
					add(kind(data.IsMonotonic), p.Attributes, p.Value)
				}
			case metricdata.Gauge[float64]:
				for _, p := range data.DataPoints {
					add("gauge", p.Attributes, p.Value)
				}
			default:
				t.Errorf("%s: %T", m.Name, data)
			}
		}
	}
	return slices.Sorted(maps.Keys(lines))
}

func kind(monotonic bool) string {
	if monotonic {
		return "counter"
	}
	return "up-down"
}

func check(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handler := &throttletest.Handler{Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) })}
		server := throttletest.NewServer(handler)
		defer server.Close()
		account := &clarifaihttp.Throttle{Limit: 1}
		transport := clarifaihttp.NewTransport(server.Client().Transport, clarifaihttp.WithThrottle(account), quiet)
		get := func(ctx context.Context, priority string) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Priority", priority)
			if resp, err := transport.RoundTrip(req); err == nil {
				resp.Body.Close()
			}
		}

		reader := sdkmetric.NewManualReader()
		provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
		registration, err := otelthrottle.Register(account, provider.Meter("test"), attribute.String("account", "a"))
		if err != nil {
			t.Fatal(err)
		}
		check(t, collect(t, reader), "clarifai.throttle.slot.limit 1 {slot} up-down account=a")

		handler.HaltFor(0)
		soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		go get(t.Context(), "u=3")
		synctest.Wait() // throttled: a pause of 15 s
		go get(t.Context(), "u=0")
		go get(t.Context(), "u=7")
		get(soon, "u=3") // refused
		time.Sleep(5 * time.Second)
		check(t, collect(t, reader),
			"clarifai.throttle.attempts 1 {attempt} counter account=a",
			"clarifai.throttle.pause.remaining 10 s gauge account=a",
			"clarifai.throttle.pauses 1 {pause} counter account=a",
			"clarifai.throttle.refused_requests 1 {request} counter account=a",
			"clarifai.throttle.slot.limit 1 {slot} up-down account=a",
			"clarifai.throttle.throttled_responses 1 {response} counter account=a",
			"clarifai.throttle.waiting_requests 1 {request} up-down account=a,clarifai.throttle.urgency=0",
			"clarifai.throttle.waiting_requests 1 {request} up-down account=a,clarifai.throttle.urgency=3",
			"clarifai.throttle.waiting_requests 1 {request} up-down account=a,clarifai.throttle.urgency=7",
		)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		check(t, collect(t, reader),
			"clarifai.throttle.attempts 2 {attempt} counter account=a",
			"clarifai.throttle.pauses 1 {pause} counter account=a",
			"clarifai.throttle.refused_requests 1 {request} counter account=a",
			"clarifai.throttle.slot.limit 1 {slot} up-down account=a",
			"clarifai.throttle.slot.usage 1 {slot} up-down account=a",
			"clarifai.throttle.throttled_responses 1 {response} counter account=a",
			"clarifai.throttle.wait.time 15 s counter account=a",
			"clarifai.throttle.waiting_requests 1 {request} up-down account=a,clarifai.throttle.urgency=3",
			"clarifai.throttle.waiting_requests 1 {request} up-down account=a,clarifai.throttle.urgency=7",
		)

		if err := registration.Unregister(); err != nil {
			t.Fatal(err)
		}
		check(t, collect(t, reader))
		time.Sleep(time.Minute)
	})
}

// TestTwoThrottles has two accounts on one Meter, and one of them leave.
func TestTwoThrottles(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test")
	first, err := otelthrottle.Register(&clarifaihttp.Throttle{Limit: 1}, meter, attribute.String("account", "a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := otelthrottle.Register(&clarifaihttp.Throttle{Limit: 2}, meter, attribute.String("account", "b")); err != nil {
		t.Fatal(err)
	}
	check(t, collect(t, reader),
		"clarifai.throttle.slot.limit 1 {slot} up-down account=a",
		"clarifai.throttle.slot.limit 2 {slot} up-down account=b")
	if err := first.Unregister(); err != nil {
		t.Fatal(err)
	}
	check(t, collect(t, reader), "clarifai.throttle.slot.limit 2 {slot} up-down account=b")
}

var errBroken = errors.New("broken")

type brokenMeter struct{ noop.Meter }

func (brokenMeter) Int64ObservableUpDownCounter(string, ...metric.Int64ObservableUpDownCounterOption) (metric.Int64ObservableUpDownCounter, error) {
	return nil, errBroken
}

type deafMeter struct{ noop.Meter }

func (deafMeter) RegisterCallback(metric.Callback, ...metric.Observable) (metric.Registration, error) {
	return nil, errBroken
}

func TestRegisterFails(t *testing.T) {
	for _, meter := range []metric.Meter{brokenMeter{}, deafMeter{}} {
		registration, err := otelthrottle.Register(new(clarifaihttp.Throttle), meter)
		if registration != nil || !errors.Is(err, errBroken) || !strings.HasPrefix(err.Error(), "otelthrottle: ") {
			t.Errorf("%T: %v, %v", meter, registration, err)
		}
	}
	defer func() {
		if r := recover(); r == nil {
			t.Error("no panic")
		}
	}()
	otelthrottle.Register(nil, noop.Meter{})
}
