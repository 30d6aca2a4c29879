// Package redisthrottle keeps all processes that share one Clarifai account
// within its rate limit together, by a Redis that they share.
//
//	client := redis.NewClient(&redis.Options{Addr: "localhost:6379"})
//	limiter := redisthrottle.New(client, redisthrottle.Config{})
//	defer limiter.Close()
//	throttle := &clarifaihttp.Throttle{Limiter: limiter}
//	http.DefaultTransport = clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottle(throttle))
//
// Every process does this, with the same [Config]. Any process then uses what
// the others leave: one alone has the whole limit, and those that compete get
// equal shares. A request costs two calls of Redis, and its place in line is
// kept by Redis: nobody polls.
//
// [Limiter] says why the limit holds, and where that ends.
package redisthrottle
