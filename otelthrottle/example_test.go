package otelthrottle_test

import (
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/otelthrottle"
)

// Prometheus gets the metrics by OpenTelemetry's exporter.
func ExampleRegister() {
	account := new(clarifaihttp.Throttle)

	registry := prometheus.NewRegistry()
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo())
	if err != nil {
		log.Fatal(err)
	}
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter))
	registration, err := otelthrottle.Register(account, provider.Meter("clarifai"), attribute.String("account", "images"))
	if err != nil {
		log.Fatal(err)
	}
	defer registration.Unregister()

	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	defer server.Close()
	resp, err := server.Client().Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "clarifai_throttle_") && !strings.Contains(line, "waiting") {
			fmt.Print(line)
		}
	}
	// Output:
	// clarifai_throttle_attempts_total{account="images"} 0
	// clarifai_throttle_handed_back_responses_total{account="images"} 0
	// clarifai_throttle_pause_remaining_seconds{account="images"} 0
	// clarifai_throttle_pauses_total{account="images"} 0
	// clarifai_throttle_refused_requests_total{account="images"} 0
	// clarifai_throttle_slot_limit{account="images"} 15
	// clarifai_throttle_slot_usage{account="images"} 0
	// clarifai_throttle_throttled_responses_total{account="images"} 0
	// clarifai_throttle_wait_time_seconds_total{account="images"} 0
}
