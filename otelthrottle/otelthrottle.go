// Package otelthrottle shows a [clarifaihttp.Throttle] as OpenTelemetry metrics.
//
//	registration, err := otelthrottle.Register(account, otel.Meter("clarifai"))
//
// [Register] lists the metrics. They are read whenever the provider of the Meter
// collects, and cost nothing in between.
package otelthrottle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"example.com/clarifaihttp"
)

// UrgencyKey is the attribute of clarifai.throttle.waiting_requests: 0, the most
// urgent, to 7, background.
const UrgencyKey = attribute.Key("clarifai.throttle.urgency")

// Register has meter observe t, by these instruments:
//
//	clarifai.throttle.attempts               counter          {attempt}   requests let go
//	clarifai.throttle.throttled_responses    counter          {response}  throttled responses
//	clarifai.throttle.pauses                 counter          {pause}     pauses begun
//	clarifai.throttle.refused_requests       counter          {request}   refused with a WaitError
//	clarifai.throttle.handed_back_responses  counter          {response}  throttled responses that callers got
//	clarifai.throttle.wait.time              counter          s           time that requests spent in line
//	clarifai.throttle.waiting_requests       up-down counter  {request}   in line, by clarifai.throttle.urgency
//	clarifai.throttle.slot.usage             up-down counter  {slot}      slots held
//	clarifai.throttle.slot.limit             up-down counter  {slot}      limit in force
//	clarifai.throttle.pause.remaining        gauge            s           what is left of the pause; 0: none
//
// Each has attrs, which tell several Throttles apart: register all of them with
// the same attribute keys. The Registration's Unregister ends it. Register is safe
// for concurrent use. It panics if t or meter is nil.
func Register(t *clarifaihttp.Throttle, meter metric.Meter, attrs ...attribute.KeyValue) (metric.Registration, error) {
	if t == nil || meter == nil {
		panic("otelthrottle: Register: nil Throttle or Meter")
	}
	in, err := newInstruments(meter)
	if err != nil {
		return nil, fmt.Errorf("otelthrottle: %w", err)
	}
	all := metric.WithAttributeSet(attribute.NewSet(attrs...))
	var byUrgency [8]metric.MeasurementOption
	for urgency := range byUrgency {
		of := append([]attribute.KeyValue{UrgencyKey.Int(urgency)}, attrs...)
		byUrgency[urgency] = metric.WithAttributeSet(attribute.NewSet(of...))
	}
	registration, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := t.Stats()
		o.ObserveInt64(in.attempts, int64(s.Attempts), all)
		o.ObserveInt64(in.throttled, int64(s.Throttled), all)
		o.ObserveInt64(in.pauses, int64(s.Pauses), all)
		o.ObserveInt64(in.refused, int64(s.Refused), all)
		o.ObserveInt64(in.handedBack, int64(s.HandedBack), all)
		o.ObserveFloat64(in.waited, s.Waited.Seconds(), all)
		for urgency, n := range s.WaitingByUrgency {
			o.ObserveInt64(in.waiting, int64(n), byUrgency[urgency])
		}
		o.ObserveInt64(in.held, int64(s.Held), all)
		o.ObserveInt64(in.limit, int64(s.Limit), all)
		var remaining time.Duration
		if !s.PausedUntil.IsZero() {
			remaining = max(time.Until(s.PausedUntil), 0)
		}
		o.ObserveFloat64(in.remaining, remaining.Seconds(), all)
		return nil
	}, in.attempts, in.throttled, in.pauses, in.refused, in.handedBack, in.waited, in.waiting, in.held, in.limit, in.remaining)
	if err != nil {
		return nil, fmt.Errorf("otelthrottle: %w", err)
	}
	return registration, nil
}

type instruments struct {
	attempts, throttled, pauses, refused, handedBack metric.Int64ObservableCounter
	waited                                           metric.Float64ObservableCounter
	waiting, held, limit                             metric.Int64ObservableUpDownCounter
	remaining                                        metric.Float64ObservableGauge
}

func newInstruments(meter metric.Meter) (in instruments, err error) {
	var failed error
	counter := func(name, unit, description string) metric.Int64ObservableCounter {
		c, err := meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(description))
		failed = errors.Join(failed, err)
		return c
	}
	upDown := func(name, unit, description string) metric.Int64ObservableUpDownCounter {
		c, err := meter.Int64ObservableUpDownCounter(name, metric.WithUnit(unit), metric.WithDescription(description))
		failed = errors.Join(failed, err)
		return c
	}
	in.attempts = counter("clarifai.throttle.attempts", "{attempt}", "Requests let go.")
	in.throttled = counter("clarifai.throttle.throttled_responses", "{response}", "Throttled responses.")
	in.pauses = counter("clarifai.throttle.pauses", "{pause}", "Pauses begun.")
	in.refused = counter("clarifai.throttle.refused_requests", "{request}", "Requests refused because they could not go before their deadline.")
	in.handedBack = counter("clarifai.throttle.handed_back_responses", "{response}", "Throttled responses that callers got.")
	in.waited, err = meter.Float64ObservableCounter("clarifai.throttle.wait.time", metric.WithUnit("s"), metric.WithDescription("Time that requests spent in line."))
	failed = errors.Join(failed, err)
	in.waiting = upDown("clarifai.throttle.waiting_requests", "{request}", "Requests in line.")
	in.held = upDown("clarifai.throttle.slot.usage", "{slot}", "Slots held.")
	in.limit = upDown("clarifai.throttle.slot.limit", "{slot}", "Limit in force.")
	in.remaining, err = meter.Float64ObservableGauge("clarifai.throttle.pause.remaining", metric.WithUnit("s"), metric.WithDescription("What is left of the pause; 0: none."))
	return in, errors.Join(failed, err)
}
