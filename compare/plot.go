package main

import (
	"bytes"
	"fmt"
	"image/color"
	"strconv"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"example.com/clarifaihttp/throttletest"
)

// A stroke is how a client is drawn in both pictures.
type stroke struct {
	name  string
	color color.RGBA
	width vg.Length
	dash  []vg.Length
}

// strokes are the clients that are drawn, the last on top. The colors are
// Okabe and Ito's, which can be told apart without color vision, on white,
// which is legible on a dark page, too.
var strokes = []stroke{
	{nameNone, color.RGBA{R: 0x99, G: 0x99, B: 0x99, A: 0xff}, 1.5, nil},
	{nameByHand, color.RGBA{A: 0xff}, 1.5, []vg.Length{1, 3}},
	{nameSmooth, color.RGBA{R: 0xe6, G: 0x9f, A: 0xff}, 1.5, nil},
	{nameMargin, color.RGBA{R: 0xe6, G: 0x9f, A: 0xff}, 1.5, []vg.Length{6, 3}},
	{nameRetryable, color.RGBA{R: 0xd5, G: 0x5e, A: 0xff}, 1.5, nil},
	{nameFailsafe, color.RGBA{R: 0x56, G: 0xb4, B: 0xe9, A: 0xff}, 1.5, []vg.Length{6, 3}},
	{nameResty, color.RGBA{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff}, 1.5, []vg.Length{2, 2}},
	{nameGitHub, color.RGBA{G: 0x9e, B: 0x73, A: 0xff}, 1.5, []vg.Length{6, 3, 1, 3}},
	{nameOurs, color.RGBA{G: 0x72, B: 0xb2, A: 0xff}, 3, nil},
}

// panels are the servers that are drawn, side by side.
var panels = []throttletest.Algorithm{throttletest.SlidingLog, throttletest.FixedWindow}

const (
	panelWidth  = 340
	panelHeight = 300
	legendWidth = 150
)

// plotServed draws how many requests were served around a halt.
func plotServed(rs records) string {
	return picture(func(a throttletest.Algorithm, s stroke) plotter.XYs {
		served := rs.named(s.name).halted[a].served
		var xys plotter.XYs
		for at, n := time.Duration(0), 0; at <= haltedFor; at += 500 * time.Millisecond {
			for n < len(served) && served[n] <= at {
				n++
			}
			xys = append(xys, plotter.XY{X: at.Seconds(), Y: float64(n)})
		}
		return xys
	}, func(p *plot.Plot, a throttletest.Algorithm) {
		p.Title.Text = fmt.Sprintf("%v, halted from %v to %v s", a, haltedAt.Seconds(), (haltedAt + backoff).Seconds())
		p.X.Label.Text = "time (s)"
		p.Y.Label.Text = "requests served"
		p.X.Tick.Marker = ticks(haltedFor.Seconds(), backoff.Seconds())
		p.Y.Tick.Marker = ticks(limit*(haltedFor-backoff).Seconds(), 150)
		halt, err := plotter.NewPolygon(rectangle(haltedAt.Seconds(), (haltedAt + backoff).Seconds(), limit*(haltedFor-backoff).Seconds()))
		if err != nil {
			panic(err) // no point
		}
		halt.Color = color.Gray{0xee}
		halt.LineStyle.Width = 0
		p.Add(halt)
	})
}

// plotGoodput draws goodput against jitter.
func plotGoodput(rs records) string {
	return picture(func(a throttletest.Algorithm, s stroke) plotter.XYs {
		var xys plotter.XYs
		for _, j := range jitters {
			f := rs.named(s.name).flood[condition{backoff, a, j}]
			xys = append(xys, plotter.XY{X: float64(j.Milliseconds()), Y: min(100*f.goodput, 100)})
		}
		return xys
	}, func(p *plot.Plot, a throttletest.Algorithm) {
		p.Title.Text = fmt.Sprintf("%v, halts of %v s", a, backoff.Seconds())
		p.X.Label.Text = "jitter each way, up to (ms)"
		p.Y.Label.Text = "goodput (% of the limit)"
		var measured plot.ConstantTicks
		for _, j := range jitters {
			measured = append(measured, plot.Tick{Value: float64(j.Milliseconds()), Label: fmt.Sprint(j.Milliseconds())})
		}
		p.X.Tick.Marker = measured
		p.Y.Tick.Marker = ticks(100, 20)
	})
}

// picture draws the panels and, right of them, the legend.
func picture(points func(throttletest.Algorithm, stroke) plotter.XYs, frame func(*plot.Plot, throttletest.Algorithm)) string {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	canvas := vgsvg.New(vg.Length(panelWidth*len(panels)+legendWidth), panelHeight)
	all := draw.New(canvas)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())

	legend := plot.NewLegend()
	legend.Top, legend.Left = true, true
	legend.TextStyle.Font.Size = 10
	legend.ThumbnailWidth = 24
	legend.Padding = 4
	for i, a := range panels {
		p := plot.New()
		p.Title.TextStyle.Font.Size = 12
		p.Title.Padding = 6
		frame(p, a)
		p.Add(plotter.NewGrid())
		for _, s := range strokes {
			line, err := plotter.NewLine(points(a, s))
			if err != nil {
				panic(err) // no point, or not a number
			}
			line.LineStyle = draw.LineStyle{Color: s.color, Width: s.width, Dashes: s.dash}
			p.Add(line)
			if i == 0 {
				legend.Add(s.name, line)
			}
		}
		last := func(t plot.Ticker) float64 { return t.Ticks(0, 0)[len(t.Ticks(0, 0))-1].Value }
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, last(p.X.Tick.Marker), 0, last(p.Y.Tick.Marker)
		p.X.Padding, p.Y.Padding = 4, 4
		p.X.Label.Padding, p.Y.Label.Padding = 4, 4
		p.Draw(draw.Crop(all, vg.Length(i*panelWidth)+6, vg.Length((i+1)*panelWidth-6)-all.Max.X, 4, -4))
	}
	legend.Draw(draw.Crop(all, vg.Length(panelWidth*len(panels))+6, -2, 4, -30))

	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		panic(err) // a bytes.Buffer takes all
	}
	// Where there is no Liberation Sans, Arial and Helvetica are as wide.
	return strings.ReplaceAll(svg.String(), "font-family:Liberation Sans;", "font-family:Liberation Sans,Arial,Helvetica,sans-serif;")
}

// ticks are the marks of an axis from 0 to end.
func ticks(end, step float64) plot.ConstantTicks {
	var all plot.ConstantTicks
	for v := 0.0; v <= end; v += step {
		all = append(all, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'f', -1, 64)})
	}
	return all
}

func rectangle(from, to, height float64) plotter.XYs {
	return plotter.XYs{{X: from}, {X: to}, {X: to, Y: height}, {X: from, Y: height}}
}
