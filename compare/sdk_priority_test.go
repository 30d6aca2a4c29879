package main

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"example.com/clarifaihttp"
)

// urgent is a RoundTripper that marks its requests as urgent.
type urgent struct{ http.RoundTripper }

func (u urgent) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Priority", "u=1")
	return u.RoundTripper.RoundTrip(req)
}

// TestSDKPriority has an SDK's urgent call overtake a batch of usual ones.
func TestSDKPriority(t *testing.T) {
	for _, tt := range []struct {
		name string
		ask  func(rt http.RoundTripper, url string) chat
	}{
		{"openai-go, by an option of the client", func(rt http.RoundTripper, url string) chat {
			ask, _ := openAI(&http.Client{Transport: rt}, url, option.WithHeader("Priority", "u=1"))
			return ask
		}},
		{"openai-go, by an option of the call", func(rt http.RoundTripper, url string) chat {
			client := openai.NewClient(option.WithHTTPClient(&http.Client{Transport: rt}), option.WithBaseURL(url+openAIPath), option.WithAPIKey("secret"))
			params := openai.ChatCompletionNewParams{Model: "m", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("count")}}
			return func(ctx context.Context) (string, error) {
				r, err := client.Chat.Completions.New(ctx, params, option.WithHeader("Priority", "u=1"))
				if err != nil {
					return "", err
				}
				return r.Choices[0].Message.Content, nil
			}
		}},
		{"go-openai, by a RoundTripper", func(rt http.RoundTripper, url string) chat {
			ask, _ := goOpenAI(&http.Client{Transport: urgent{rt}}, url)
			return ask
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			var order []string
			api := func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				order = append(order, r.Header.Get("Priority"))
				mu.Unlock()
				chatAPI(w, r)
			}
			withAccount(t, api, func(t *testing.T, a account) {
				rt := clarifaihttp.NewTransport(a.Client().Transport, quiet, clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Limit: 1}))
				usual, _ := goOpenAI(&http.Client{Transport: rt}, a.URL)
				var wg sync.WaitGroup
				send := func(ask chat) {
					wg.Go(func() {
						if text, err := ask(t.Context()); err != nil || text != wholeReply {
							t.Errorf("%q, %v", text, err)
						}
					})
					synctest.Wait()
				}
				for range 3 {
					send(usual)
				}
				send(tt.ask(rt, a.URL))
				wg.Wait()
			})
			if want := []string{"", "u=1", "", ""}; !slices.Equal(order, want) {
				t.Errorf("arrived with priorities %q, want %q", order, want)
			}
		})
	}
}
