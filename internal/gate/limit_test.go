package gate

import (
	"testing"
	"time"
)

func TestLimit(t *testing.T) {
	type step struct {
		at    time.Duration
		named int // by the server; 0: nothing
		want  int
	}
	const h = time.Hour
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"restored after an hour", []step{{0, 10, 10}, {h - 1, 0, 10}, {h, 0, 15}}},
		{"counted from when it was last named", []step{{0, 10, 10}, {h / 2, 10, 10}, {h, 0, 10}, {h + h/2, 0, 15}}},
		{"a higher one does not count", []step{{0, 10, 10}, {h / 2, 12, 10}, {h, 0, 15}}},
		{"nor one as high as configured", []step{{0, 15, 15}, {0, 100, 15}}},
		{"a lower one", []step{{0, 10, 10}, {h / 2, 5, 5}, {h, 0, 5}, {h + h/2, 0, 15}}},
		{"twice as long each time it is learned again", []step{
			{0, 10, 10}, {h, 0, 15}, {h, 10, 10}, {2 * h, 0, 10}, {3*h - 1, 0, 10}, {3 * h, 0, 15},
			{3 * h, 10, 10}, {7*h - 1, 0, 10}, {7 * h, 0, 15},
		}},
		{"but another one anew", []step{{0, 10, 10}, {h, 0, 15}, {h, 9, 9}, {2 * h, 0, 15}}},
		{"and a day at most", []step{
			{0, 10, 10}, {h, 0, 15}, {h, 10, 10}, {3 * h, 0, 15}, {3 * h, 10, 10}, {7 * h, 0, 15},
			{7 * h, 10, 10}, {15 * h, 0, 15}, {15 * h, 10, 10}, {31 * h, 0, 15}, {31 * h, 10, 10}, {55*h - 1, 0, 10}, {55 * h, 0, 15},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLimit(15)
			begin := time.Now()
			before := 15
			for _, s := range tt.steps {
				now := begin.Add(s.at)
				if by := l.by(now); s.named == 0 && by != s.want {
					t.Errorf("after %v it will be %d, want %d", s.at, by, s.want)
				}
				restored := l.tick(now)
				if want := s.named == 0 && s.want > before; restored != want {
					t.Errorf("after %v: restored %v, want %v", s.at, restored, want)
				}
				if s.named != 0 {
					if lowered := l.learn(s.named, now); lowered != (s.want < before) {
						t.Errorf("after %v: lowered %v", s.at, lowered)
					}
				}
				if l.now != s.want {
					t.Errorf("after %v it is %d, want %d", s.at, l.now, s.want)
				}
				before = l.now
			}
		})
	}
}
