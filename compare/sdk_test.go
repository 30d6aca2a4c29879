package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	goopenai "github.com/sashabaranov/go-openai"

	"example.com/clarifaihttp"
)

const (
	openAIPath = "/v2/ext/openai/v1"
	wholeReply = "one two three"
)

// chatAPI is Clarifai's OpenAI-compatible endpoint, as far as chats need it.
func chatAPI(w http.ResponseWriter, r *http.Request) {
	var chat struct {
		Stream   bool
		Messages []struct{ Content string }
	}
	if err := json.NewDecoder(r.Body).Decode(&chat); err != nil || len(chat.Messages) != 1 || r.URL.Path != openAIPath+"/chat/completions" {
		http.Error(w, "no chat", http.StatusBadRequest)
		return
	}
	time.Sleep(50 * time.Millisecond)
	if !chat.Stream {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"id":"1","object":"chat.completion","model":"m","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":%q}}]}`, wholeReply)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for _, word := range []string{"one", " two", " three"} {
		fmt.Fprintf(w, `data: {"id":"1","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":%q}}]}`+"\n\n", word)
		w.(http.Flusher).Flush()
		time.Sleep(20 * time.Millisecond)
	}
	io.WriteString(w, "data: [DONE]\n\n")
}

// A chat asks something of the API and returns the reply.
type chat func(ctx context.Context) (string, error)

// sdks are third-party clients, unchanged but for their http.Client.
var sdks = []struct {
	name string
	open func(c *http.Client, url string) (plain, streamed chat)
}{
	{"openai-go", func(c *http.Client, url string) (plain, streamed chat) { return openAI(c, url) }},
	{"openai-go, no retries of its own", func(c *http.Client, url string) (plain, streamed chat) {
		return openAI(c, url, option.WithMaxRetries(0))
	}},
	{"go-openai", goOpenAI},
}

func openAI(c *http.Client, url string, opts ...option.RequestOption) (plain, streamed chat) {
	client := openai.NewClient(append(opts, option.WithHTTPClient(c), option.WithBaseURL(url+openAIPath), option.WithAPIKey("secret"))...)
	params := openai.ChatCompletionNewParams{Model: "m", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("count")}}
	plain = func(ctx context.Context) (string, error) {
		r, err := client.Chat.Completions.New(ctx, params)
		if err != nil {
			return "", err
		}
		return r.Choices[0].Message.Content, nil
	}
	streamed = func(ctx context.Context) (text string, err error) {
		stream := client.Chat.Completions.NewStreaming(ctx, params)
		defer stream.Close()
		for stream.Next() {
			text += stream.Current().Choices[0].Delta.Content
		}
		return text, stream.Err()
	}
	return plain, streamed
}

func goOpenAI(c *http.Client, url string) (plain, streamed chat) {
	config := goopenai.DefaultConfig("secret")
	config.BaseURL = url + openAIPath
	config.HTTPClient = c
	client := goopenai.NewClientWithConfig(config)
	params := goopenai.ChatCompletionRequest{Model: "m", Messages: []goopenai.ChatCompletionMessage{{Role: goopenai.ChatMessageRoleUser, Content: "count"}}}
	plain = func(ctx context.Context) (string, error) {
		r, err := client.CreateChatCompletion(ctx, params)
		if err != nil {
			return "", err
		}
		return r.Choices[0].Message.Content, nil
	}
	streamed = func(ctx context.Context) (text string, err error) {
		stream, err := client.CreateChatCompletionStream(ctx, params)
		if err != nil {
			return "", err
		}
		defer stream.Close()
		for {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return text, nil
			}
			if err != nil {
				return text, err
			}
			text += chunk.Choices[0].Delta.Content
		}
	}
	return plain, streamed
}

// TestSDKs has 20 goroutines make 60 calls through each SDK, alone and with
// another user who has the account halted in between.
func TestSDKs(t *testing.T) {
	for _, sdk := range sdks {
		for _, stream := range []bool{false, true} {
			for _, halt := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/stream %v/halt %v", sdk.name, stream, halt), func(t *testing.T) {
					withAccount(t, chatAPI, func(t *testing.T, a account) {
						ask, streamed := sdk.open(&http.Client{Transport: clarifaihttp.NewTransport(a.Client().Transport, quiet)}, a.URL)
						if stream {
							ask = streamed
						}
						if halt {
							time.AfterFunc(1500*time.Millisecond, func() { a.HaltFor(backoff) })
						}
						all(t, 60, func() error {
							text, err := ask(t.Context())
							if err == nil && text != wholeReply {
								err = fmt.Errorf("reply %q", text)
							}
							return err
						})
						s := a.Stats()
						t.Logf("%+v", s)
						if s.Served != 60 || s.Peak > limit {
							t.Errorf("%+v", s)
						}
						if halt != (s.Throttled > 0) || s.Throttled > limit {
							t.Errorf("%d throttled", s.Throttled)
						}
					})
				})
			}
		}
	}
}

// TestSDKRetries counts what one call sends while the account stays halted:
// an SDK's own retries multiply with ours, unless they are switched off.
func TestSDKRetries(t *testing.T) {
	const attempts = 1 + retries // of one RoundTrip
	for i, want := range []int{3 * attempts, attempts, attempts} {
		t.Run(sdks[i].name, func(t *testing.T) {
			withAccount(t, chatAPI, func(t *testing.T, a account) {
				a.HaltFor(24 * time.Hour)
				ask, _ := sdks[i].open(&http.Client{Transport: clarifaihttp.NewTransport(a.Client().Transport, quiet)}, a.URL)
				if _, err := ask(t.Context()); err == nil {
					t.Error("no error")
				}
				a.kept(t, 0, want)
			})
		})
	}
}
