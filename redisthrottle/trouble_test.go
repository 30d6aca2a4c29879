package redisthrottle_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/redisthrottle"
	"example.com/clarifaihttp/redisthrottle/internal/redisserver"
)

// rights are what New's doc lists.
var rights = strings.Fields("-@all ~clarifaihttp:* +hello +eval +evalsha +info +time +blmove +lmove +rpush +lpop +lrem +lrange +llen +hgetall +hset +hdel +del +pexpire")

// login makes a user with these rights and returns a client of its.
func login(t *testing.T, addr string, rights []string) *redis.Client {
	t.Helper()
	grant(t, connect(t, addr), rights...)
	c := redis.NewClient(&redis.Options{Addr: addr, Username: "app", Password: "secret"})
	t.Cleanup(func() { c.Close() })
	return c
}

// grant changes the user's rights.
func grant(t *testing.T, client *redis.Client, rights ...string) {
	t.Helper()
	args := []any{"acl", "setuser", "app", "on", ">secret"}
	for _, r := range rights {
		args = append(args, r)
	}
	if err := client.Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
}

// TestRights has a user with exactly the rights that are documented, in RESP2
// and RESP3: none is missing, none is needless.
func TestRights(t *testing.T) {
	t.Parallel()
	server, n := startRedis(t), listen(t)
	admin := connect(t, server.Addr)
	l := redisthrottle.New(login(t, server.Addr, rights), redisthrottle.Config{Logger: quiet})
	ld := load{answer: 10 * ms}
	stop := ld.run(t, l)
	ld.await(t, time.Now(), 30, 20*time.Second)
	l.Throttled(time.Second)
	ld.await(t, time.Now().Add(time.Second), 10, 20*time.Second)
	stop()
	if err := l.Close(); err != nil {
		n.slow(t, "%v", err)
	}
	denied, err := admin.Do(t.Context(), "acl", "log").Slice()
	if err != nil || len(denied) > 0 {
		t.Errorf("%v denied (%v)", denied, err)
	}
	used := admin.Info(t.Context(), "commandstats").Val()
	for _, r := range rights {
		if name, ok := strings.CutPrefix(r, "+"); ok && !strings.Contains(used, "cmdstat_"+name+":") && name != "eval" {
			t.Errorf("%s is not used", name)
		}
	}
}

// TestErrors has trouble that time does not cure come back from Wait, at once,
// until it is cured.
func TestErrors(t *testing.T) {
	t.Parallel()
	server, n := startRedis(t), listen(t)
	admin := connect(t, server.Addr)
	secure := startTLS(t)
	other := startTLS(t)
	for _, tt := range []struct {
		name, want  string
		client      redis.UniversalClient
		config      redisthrottle.Config
		break_, fix func()
	}{
		{"INFO denied", "INFO", login(t, server.Addr, append(slices.Clone(rights), "-info")), redisthrottle.Config{Account: "a"}, nil, func() { grant(t, admin, "+info") }},
		{"wrong CA", "x509", other.client(t, secure.addr), redisthrottle.Config{}, nil, nil},
		{"plain to TLS", "TLS", connect(t, secure.addr), redisthrottle.Config{}, nil, nil},
		{"TLS to plain", "TLS", secure.client(t, server.Addr), redisthrottle.Config{}, nil, nil},
		{"wrong type", "WRONGTYPE", connect(t, server.Addr), redisthrottle.Config{Account: "b"},
			func() { admin.Set(t.Context(), "clarifaihttp:{b}:pool", "x", 0) }, func() { admin.Del(t.Context(), "clarifaihttp:{b}:pool") }},
		{"BLMOVE denied", "NOPERM", login(t, startRedis(t).Addr, append(slices.Clone(rights), "-blmove")), redisthrottle.Config{}, nil, nil},
		{"wrong password", "WRONGPASS", redis.NewClient(&redis.Options{Addr: server.Addr, Username: "app", Password: "no"}), redisthrottle.Config{}, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.break_ != nil {
				tt.break_()
			}
			var j journal
			tt.config.Logger = slog.New(slog.NewTextHandler(&j, nil))
			l := redisthrottle.New(tt.client, tt.config)
			begin := time.Now()
			for time.Since(begin) < 2500*ms {
				again := time.Now()
				err := l.Wait(expired(t, 10*time.Second))
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("%v, want one that names %s", err, tt.want)
				}
				if d := time.Since(again); d > 2*time.Second {
					n.slow(t, "an error after %v", d)
				}
				time.Sleep(50 * ms)
			}
			if text := strings.Join(j.lines(), ""); strings.Count(text, "WARN") != 1 || strings.Contains(text, "is back") {
				t.Errorf("log: %s", text)
			}
			if tt.fix == nil {
				return
			}
			tt.fix()
			for begin := time.Now(); l.Wait(expired(t, 10*time.Second)) != nil; time.Sleep(50 * ms) {
				if time.Since(begin) > 20*time.Second {
					t.Fatal("not cured")
				}
			}
		})
	}
}

// TestWithoutInfo has a Redis that is known never to start with old data.
func TestWithoutInfo(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	l := redisthrottle.New(login(t, server.Addr, append(slices.Clone(rights), "-info")), redisthrottle.Config{NoRestart: true, Logger: quiet})
	wait(t, l, 10*time.Second)
}

// A secureRedis is a Redis with TLS, and a CA of its own.
type secureRedis struct {
	addr  string
	roots *x509.CertPool
}

func startTLS(t *testing.T) secureRedis {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir, roots := t.TempDir(), x509.NewCertPool()
	for name, block := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: cert}, "key": {Type: "PRIVATE KEY", Bytes: der}} {
		text := pem.EncodeToMemory(block)
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if name == "cert" {
			roots.AppendCertsFromPEM(text)
		}
	}
	port, err := redisserver.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	startRedis(t, "--tls-port", port, "--tls-cert-file", filepath.Join(dir, "cert"), "--tls-key-file", filepath.Join(dir, "key"), "--tls-auth-clients", "no")
	return secureRedis{net.JoinHostPort("127.0.0.1", port), roots}
}

// client returns a client that trusts s, for the Redis at addr.
func (s secureRedis) client(t *testing.T, addr string) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: addr, TLSConfig: &tls.Config{RootCAs: s.roots}})
	t.Cleanup(func() { c.Close() })
	return c
}

func TestTLS(t *testing.T) {
	t.Parallel()
	s, n := startTLS(t), listen(t)
	network := newFarProxy(t, s.addr, 60*ms)
	ld := load{answer: 10 * ms}
	var j journal
	l := redisthrottle.New(s.client(t, network.Addr), redisthrottle.Config{Logger: slog.New(slog.NewTextHandler(&j, nil))})
	stop := ld.run(t, l)
	ld.await(t, time.Now(), 30, 30*time.Second)
	network.cut()
	ld.await(t, time.Now(), 30, 30*time.Second)
	ld.check(t, time.Time{}, 15)
	stop()
	if text := strings.Join(j.lines(), ""); strings.Count(text, "WARN") > 1 {
		n.slow(t, "log: %s", text)
	}
}

// TestAgree has a Throttle and a Config say different things, and the same.
func TestAgree(t *testing.T) {
	client := connect(t, "127.0.0.1:1")
	for _, tt := range []struct {
		throttle *clarifaihttp.Throttle
		config   redisthrottle.Config
		want     []string
	}{
		{&clarifaihttp.Throttle{}, redisthrottle.Config{}, nil},
		{&clarifaihttp.Throttle{Limit: 100, Window: time.Minute, Transit: time.Second}, redisthrottle.Config{}, nil},
		{&clarifaihttp.Throttle{Limit: 100, Window: time.Minute, Transit: time.Second}, redisthrottle.Config{Limit: 100, Window: time.Minute, Transit: time.Second}, nil},
		{&clarifaihttp.Throttle{Transit: -1}, redisthrottle.Config{}, nil},
		{&clarifaihttp.Throttle{Transit: -1}, redisthrottle.Config{Transit: time.Second}, nil},
		{&clarifaihttp.Throttle{}, redisthrottle.Config{Limit: 100}, []string{"Config.Limit is 100", "Throttle.Limit is 15"}},
		{&clarifaihttp.Throttle{Window: time.Minute}, redisthrottle.Config{Window: time.Hour}, []string{"Config.Window is 1h", "Throttle.Window is 1m"}},
		{&clarifaihttp.Throttle{Transit: time.Second}, redisthrottle.Config{Transit: 2 * time.Second}, []string{"Config.Transit is 2s", "Throttle.Transit is 1s"}},
		{&clarifaihttp.Throttle{Limit: 100_000}, redisthrottle.Config{}, []string{"Throttle.Limit is 100000"}},
	} {
		l := redisthrottle.New(client, tt.config)
		tt.throttle.Limiter = l
		message := panicOf(func() { tt.throttle.Stats() })
		if (message == "") != (tt.want == nil) {
			t.Errorf("%+v: panic %q", tt.config, message)
		}
		for _, want := range tt.want {
			if !strings.HasPrefix(message, "clarifaihttp: Throttle.Limiter: redisthrottle: ") || !strings.Contains(message, want) {
				t.Errorf("panic %q, want %q", message, want)
			}
		}
	}
	l := redisthrottle.New(client, redisthrottle.Config{})
	new1 := func(limit int) { (&clarifaihttp.Throttle{Limit: limit, Limiter: l}).Stats() }
	new1(20)
	new1(20)
	if message := panicOf(func() { new1(21) }); !strings.Contains(message, "Config.Limit is 20, Throttle.Limit is 21") {
		t.Errorf("two Throttles: %q", message)
	}
	capped := &clarifaihttp.Throttle{Limit: 3, Limiter: ownLimit{l}}
	if s := capped.Stats(); s.Limit != 3 {
		t.Errorf("%+v", s)
	}
}

// ownLimit hides Agree, so that the Throttle may keep below the account's limit.
type ownLimit struct{ l *redisthrottle.Limiter }

func (o ownLimit) Wait(ctx context.Context) error { return o.l.Wait(ctx) }
func (o ownLimit) Arrived()                       { o.l.Arrived() }
func (o ownLimit) Throttled(wait time.Duration)   { o.l.Throttled(wait) }

func panicOf(f func()) (message string) {
	defer func() {
		if e := recover(); e != nil {
			message = e.(string)
		}
	}()
	f()
	return ""
}
