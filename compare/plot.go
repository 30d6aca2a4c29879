package main

import (
	"bytes"
	"fmt"
	"image/color"
	"strconv"
	"strings"
	"time"

	xfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"example.com/clarifaihttp/throttletest"
)

// drawn are the clients in the pictures of goodput and of a halt.
var drawn = []string{
	nameByHand, nameSmooth, nameMargin12,
	nameRetryable, nameFailsafe, nameGitHub,
	nameResty, nameProcesses, nameOurs,
}

// panels are the servers in these pictures.
var panels = []throttletest.Algorithm{throttletest.SlidingLog, throttletest.FixedWindow}

// The colors are Okabe and Ito's, which can be told apart without color vision.
var (
	blue   = color.RGBA{G: 0x72, B: 0xb2, A: 0xff}
	orange = color.RGBA{R: 0xe6, G: 0x9f, A: 0xff}
	pale   = color.Gray{0xe8}
	grey   = color.Gray{0x60}
)

// Shades are for jitters, from the shortest, of this package and of others.
var (
	blues = []color.Color{color.RGBA{0x8f, 0xc7, 0xe8, 0xff}, color.RGBA{0x4a, 0xa3, 0xd4, 0xff}, blue, color.RGBA{0x00, 0x40, 0x70, 0xff}}
	greys = []color.Color{color.Gray{0xbb}, color.Gray{0x94}, color.Gray{0x66}, color.Gray{0x33}}
)

// conditionsDrawn says what goes for the floods in the pictures.
func conditionsDrawn(jitter string) string {
	return fmt.Sprintf("%d workers, limit %d per second, halts of %.0f s, jitter each way %s", workers, limit, backoff.Seconds(), jitter)
}

// counting says what the servers in the pictures do.
var counting = fmt.Sprintf("%s: at most %d requests in any second; %s: at most %d in each second of the clock", panels[0], limit, panels[1], limit)

// A sheet is a picture: a title, lines below it, and room for plots. It is white,
// to be legible on a dark page, too, and about as wide as GitHub shows a README.
type sheet struct {
	canvas *vgsvg.Canvas
	room   draw.Canvas
}

const sheetWidth = 620

func newSheet(height vg.Length, title string, below ...string) *sheet {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	s := &sheet{canvas: vgsvg.New(sheetWidth, height)}
	s.room = draw.New(s.canvas)
	s.room.SetColor(color.White)
	s.room.Fill(s.room.Rectangle.Path())
	s.room.Max.Y -= 8
	s.room.Min.X, s.room.Max.X = s.room.Min.X+6, s.room.Max.X-6
	bold := style(13, color.Black)
	bold.Font.Weight = xfont.WeightBold
	s.write(bold, title)
	for _, line := range below {
		s.write(style(10, grey), line)
	}
	return s
}

// write writes a line and takes its height off the room.
func (s *sheet) write(st draw.TextStyle, line string) {
	s.room.FillText(st, vg.Point{X: s.room.Min.X, Y: s.room.Max.Y}, line)
	s.room.Max.Y -= st.Font.Size * 1.4
}

// legend writes what colors stand for, as a line.
func (s *sheet) legend(swatch func(at vg.Point, i int), names ...string) {
	x, st := s.room.Min.X, style(10, color.Black)
	s.room.Max.Y -= 3
	for i, name := range names {
		swatch(vg.Point{X: x, Y: s.room.Max.Y - 6}, i)
		s.room.FillText(st, vg.Point{X: x + 26, Y: s.room.Max.Y}, name)
		x += 26 + st.Width(name) + 18
	}
	s.room.Max.Y -= 20
}

func (s *sheet) String() string {
	var svg bytes.Buffer
	if _, err := s.canvas.WriteTo(&svg); err != nil {
		panic(err) // a bytes.Buffer takes all
	}
	// Where there is no Liberation Sans, Arial and Helvetica are as wide.
	return strings.ReplaceAll(svg.String(), "font-family:Liberation Sans;", "font-family:Liberation Sans,Arial,Helvetica,sans-serif;")
}

// style is for text that hangs from its point.
func style(size font.Length, c color.Color) draw.TextStyle {
	return draw.TextStyle{
		Color:   c,
		Font:    font.From(plot.DefaultFont, size),
		YAlign:  draw.YTop,
		Handler: plot.DefaultTextHandler,
	}
}

// newPlot returns an empty plot with small text.
func newPlot(title string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	p.Title.TextStyle.Font.Size = 11
	p.Title.Padding = 4
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle.Font.Size = 10
		a.Label.Padding, a.Padding = 3, 3
		a.Tick.Label.Font.Size = 9
		a.Color, a.Tick.Color = grey, grey
	}
	return p
}

// A drawing is drawn in a plot.
type drawing func(c draw.Canvas, x, y func(float64) vg.Length)

func (d drawing) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	d(c, x, y)
}

// box fills a rectangle between two corners.
func box(c draw.Canvas, fill color.Color, x0, y0, x1, y1 vg.Length) {
	c.FillPolygon(fill, []vg.Point{{X: x0, Y: y0}, {X: x1, Y: y0}, {X: x1, Y: y1}, {X: x0, Y: y1}})
}

// plotGoodput draws goodput at each jitter, by bars: a row for each client.
func plotGoodput(rs records) string {
	const rowHeight, labels, gap, barHeight = 30, 118, 16, 5.5
	last := jitters[len(jitters)-1].Milliseconds()
	var jitterLabels []string
	for _, j := range jitters {
		jitterLabels = append(jitterLabels, fmt.Sprintf("%d ms", j.Milliseconds()))
	}
	s := newSheet(rowHeight*vg.Length(len(drawn))+134, "Goodput: the share of the limit that is served",
		conditionsDrawn(fmt.Sprintf("up to %d ms (there %s has Transit: %d ms)", last, nameOurs, last)), counting)
	s.legend(func(at vg.Point, i int) {
		box(s.room, greys[i], at.X, at.Y-barHeight/2, at.X+10, at.Y+barHeight/2)
		box(s.room, blues[i], at.X+11, at.Y-barHeight/2, at.X+21, at.Y+barHeight/2)
	}, jitterLabels...)

	var rows plot.ConstantTicks
	for i, name := range drawn {
		rows = append(rows, plot.Tick{Value: float64(len(drawn) - 1 - i), Label: name})
	}
	half := (s.room.Max.X - s.room.Min.X - labels - gap) / 2
	for i, a := range panels {
		p := newPlot(fmt.Sprintf("server counts by a %s", a))
		p.X.Label.Text = "goodput (% of the limit)"
		p.X.Tick.Marker = ticks(100, 20)
		p.Y.Tick.Marker = rows
		p.Y.Width, p.Y.Tick.Length = 0, 0
		p.Y.Tick.Label.Font.Size = 10
		left := s.room.Min.X
		if i > 0 {
			left += labels + gap + vg.Length(i)*half
			p.HideY()
		}
		grid := plotter.NewGrid()
		grid.Horizontal.Width = 0
		p.Add(grid, drawing(func(c draw.Canvas, x, y func(float64) vg.Length) {
			for _, row := range rows {
				shades := greys
				if row.Label == nameOurs {
					shades = blues
				}
				for k, j := range jitters {
					f := rs.named(row.Label).flood[condition{backoff, a, j}]
					top := y(row.Value) + vg.Length(len(jitters)-2*k)*barHeight/2
					box(c, shades[k], x(0), top-barHeight+0.5, x(min(100*f.goodput, 100)), top)
				}
			}
		}))
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, 100, -0.5, float64(len(drawn))-0.5
		p.Draw(draw.Canvas{Canvas: s.room.Canvas, Rectangle: vg.Rectangle{
			Min: vg.Point{X: left, Y: s.room.Min.Y + 4},
			Max: vg.Point{X: s.room.Min.X + labels + vg.Length(i)*gap + vg.Length(i+1)*half, Y: s.room.Max.Y},
		}})
	}
	return s.String()
}

// plotServed draws how many requests were served around a halt: a plot for each
// client, with a line for each server.
func plotServed(rs records) string {
	const columns, plotHeight = 3, 112
	lines := []draw.LineStyle{{Color: blue, Width: 2.5}, {Color: orange, Width: 1.5, Dashes: []vg.Length{4, 3}}, {Color: color.Gray{0xaa}, Width: 1}}
	s := newSheet(plotHeight*vg.Length((len(drawn)+columns-1)/columns)+78,
		fmt.Sprintf("Requests served, while another user halts the account from %.0f to %.0f s (grey)", haltedAt.Seconds(), (haltedAt+backoff).Seconds()),
		conditionsDrawn(fmt.Sprintf("up to %d ms", usualJitter.Milliseconds())), counting)
	s.legend(func(at vg.Point, i int) {
		s.room.StrokeLine2(lines[i], at.X, at.Y, at.X+22, at.Y)
	}, fmt.Sprintf("server counts by a %s", panels[0]), fmt.Sprintf("by a %s", panels[1]), "all that the limit allows")

	const most = limit * (haltedFor - backoff) / time.Second
	all := plotter.XYs{{}, {X: haltedAt.Seconds(), Y: limit * haltedAt.Seconds()}, {X: (haltedAt + backoff).Seconds(), Y: limit * haltedAt.Seconds()}, {X: haltedFor.Seconds(), Y: float64(most)}}
	width := (s.room.Max.X - s.room.Min.X) / columns
	for i, name := range drawn {
		p := newPlot(name)
		p.X.Tick.Marker = plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: 25, Label: "25 s"}, {Value: 50, Label: "50 s"}, {Value: 75, Label: "75 s"}}
		p.Y.Tick.Marker = ticks(float64(most), float64(most)/3)
		p.Add(drawing(func(c draw.Canvas, x, y func(float64) vg.Length) {
			box(c, pale, x(haltedAt.Seconds()), y(0), x((haltedAt + backoff).Seconds()), y(float64(most)))
		}))
		for k, points := range []plotter.XYs{all, served(rs.named(name).halted[panels[0]]), served(rs.named(name).halted[panels[1]])} {
			line, err := plotter.NewLine(points)
			if err != nil {
				panic(err) // no point, or not a number
			}
			line.LineStyle = lines[(k+2)%3]
			p.Add(line)
		}
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, haltedFor.Seconds(), 0, float64(most)
		if name == nameOurs {
			p.Title.TextStyle.Font.Weight = xfont.WeightBold
		}
		at := vg.Point{X: s.room.Min.X + vg.Length(i%columns)*width, Y: s.room.Max.Y - vg.Length(i/columns)*plotHeight}
		p.Draw(draw.Canvas{Canvas: s.room.Canvas, Rectangle: vg.Rectangle{
			Min: vg.Point{X: at.X, Y: at.Y - plotHeight + 6},
			Max: vg.Point{X: at.X + width - 10, Y: at.Y},
		}})
	}
	return s.String()
}

// served counts what was served by each second.
func served(f figures) (xys plotter.XYs) {
	for at, n := time.Duration(0), 0; at <= haltedFor; at += time.Second {
		for n < len(f.served) && f.served[n] <= at {
			n++
		}
		xys = append(xys, plotter.XY{X: at.Seconds(), Y: float64(n)})
	}
	return xys
}

// plotInteractive draws how long the user waits, by each client.
func plotInteractive(rs records) string {
	const rowHeight = 19
	names, sides := rs.sides()
	s := newSheet(rowHeight*vg.Length(len(names))+104,
		fmt.Sprintf("How long a user waits beside a batch of %d requests", batchSize),
		"from the median to the 99th percentile, Priority: "+urgentest+" where nothing else is said",
		fmt.Sprintf("all at once, limit %d per second, halts of %.0f s, jitter each way up to %d ms, server counts by a %s", limit, backoff.Seconds(), usualJitter.Milliseconds(), usual.algorithm))

	var rows plot.ConstantTicks
	for i, name := range names {
		rows = append(rows, plot.Tick{Value: float64(len(names) - 1 - i), Label: name})
	}
	p := newPlot("")
	p.X.Label.Text = "time until served (s, logarithmic)"
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = plot.ConstantTicks{{Value: 0.1, Label: "0.1"}, {Value: 1, Label: "1"}, {Value: 10, Label: "10"}, {Value: 100, Label: "100"}, {Value: patience.Seconds(), Label: fmt.Sprint(patience.Seconds())}}
	p.Y.Tick.Marker = rows
	p.Y.Tick.Length, p.Y.Width = 0, 0
	p.Y.Tick.Label.Font.Size = 10
	grid := plotter.NewGrid()
	p.Add(grid, drawing(func(c draw.Canvas, x, y func(float64) vg.Length) {
		text := style(9, color.Black)
		text.YAlign = draw.YCenter
		for i, side := range sides {
			at, paint := y(rows[i].Value), color.Color(grey)
			if strings.HasPrefix(names[i], nameOurs) {
				paint = blue
			}
			from, to := side.quantile(0.50), side.quantile(0.99)
			label := fmt.Sprintf("%.1f to %.1f s", from.Seconds(), to.Seconds())
			switch {
			case from == patience:
				label = fmt.Sprintf("over %.0f s", patience.Seconds())
			case to == patience:
				label = fmt.Sprintf("%.0f to over %.0f s", from.Seconds(), patience.Seconds())
			}
			c.StrokeLine2(draw.LineStyle{Color: paint, Width: 3}, x(from.Seconds()), at, x(to.Seconds()), at)
			for _, end := range []time.Duration{from, to} {
				var shape draw.GlyphDrawer = draw.CircleGlyph{}
				if end == patience {
					shape = draw.RingGlyph{} // not served by then
				}
				c.DrawGlyph(draw.GlyphStyle{Color: paint, Radius: 4, Shape: shape}, vg.Point{X: x(end.Seconds()), Y: at})
			}
			c.FillText(text, vg.Point{X: x(to.Seconds()) + 8, Y: at}, label)
		}
	}))
	p.X.Min, p.X.Max = 0.1, patience.Seconds()
	p.Y.Min, p.Y.Max = -0.5, float64(len(names))-0.5
	p.Draw(draw.Crop(s.room, 0, -64, 4, -4))
	return s.String()
}

// ticks are the marks of an axis from 0 to end.
func ticks(end, step float64) plot.ConstantTicks {
	var all plot.ConstantTicks
	for v := 0.0; v <= end; v += step {
		all = append(all, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'f', -1, 64)})
	}
	return all
}
