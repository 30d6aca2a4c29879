package main

import "strings"

// A modelType is what this program knows of one of Clarifai's model types.
type modelType struct {
	ID           string  `json:"id"`
	Title        string  `json:"title"`
	Description  string  `json:"description"`
	InputFields  []field `json:"input_fields"`
	OutputFields []field `json:"output_fields"`
}

// A field is a place in the data of an input or output.
type field struct {
	Path string `json:"path"`
}

// builtin are the model types of the built-in server: a snapshot in the manner
// of Clarifai's documentation, not what the API says today.
var builtin = []modelType{
	// Models that are trained.
	entry("visual-classifier", "Visual Classifier", "Says which concepts an image or a video frame shows.", "image", "concepts"),
	entry("visual-detector", "Visual Detector", "Finds objects in an image and names the concept in each box.", "image", "regions[...].concepts"),
	entry("visual-segmenter", "Visual Segmenter", "Assigns every pixel of an image to a concept.", "image", "regions[...].mask"),
	entry("visual-embedder", "Visual Embedder", "Turns an image into a vector for search and further training.", "image", "embeddings"),
	entry("visual-detector-embedder", "Visual Detector Embedder", "Finds objects in an image and gives each box a vector.", "image", "regions[...].embeddings"),
	entry("visual-keypointer", "Visual Keypointer", "Finds the key points of objects, such as the joints of a body.", "image", "regions[...].keypoints"),
	entry("visual-anomaly-heatmap", "Visual Anomaly Heatmap", "Scores how unusual an image is and shows where.", "image", "concepts, heatmaps"),
	entry("embedding-classifier", "Transfer Learning", "Learns new concepts on top of another model's vectors.", "embeddings", "concepts"),
	entry("clusterer", "Clusterer", "Groups inputs whose vectors lie close together.", "embeddings", "clusters"),
	entry("knn-concept", "KNN Classifier", "Lets the nearest labelled neighbours vote on the concept.", "embeddings", "concepts"),
	entry("text-classifier", "Text Classifier", "Says which concepts a text is about.", "text", "concepts"),
	entry("text-token-classifier", "Text Token Classifier", "Labels the words of a text, names and places for example.", "text", "regions[...].concepts"),
	entry("text-embedder", "Text Embedder", "Turns a text into a vector for search and further training.", "text", "embeddings"),
	entry("text-to-text", "Text to Text", "Writes a text in reply to a text: chat, summary, translation.", "text", "text"),
	entry("text-to-image", "Text to Image", "Draws an image after a description.", "text", "image"),
	entry("text-to-audio", "Text to Audio", "Reads a text aloud.", "text", "audio"),
	entry("image-to-text", "Image to Text", "Describes an image in words.", "image", "text"),
	entry("image-to-image", "Image to Image", "Makes a new image out of another one.", "image", "image"),
	entry("image-color-recognizer", "Image Color Recognizer", "Lists the dominant colours of an image and their shares.", "image", "colors"),
	entry("optical-character-recognizer", "Optical Character Recognizer", "Finds text in an image and reads it, box by box.", "image", "regions[...].text"),
	entry("audio-classifier", "Audio Classifier", "Says which concepts a recording contains.", "audio", "concepts"),
	entry("audio-embedder", "Audio Embedder", "Turns a recording into a vector.", "audio", "embeddings"),
	entry("audio-to-text", "Audio to Text", "Writes down what is said in a recording.", "audio", "text"),
	entry("multimodal-to-text", "Multimodal to Text", "Writes a text in reply to images and text together.", "image, text", "text"),
	entry("multimodal-embedder", "Multimodal Embedder", "Puts images and texts into one vector space.", "image, text", "embeddings"),
	entry("any-to-any", "Any to Any", "Has methods of its own making, with any input and output.", "any", "any"),
	entry("mcp", "MCP Server", "Offers tools to agents by the Model Context Protocol.", "any", "any"),
	entry("openai", "OpenAI Compatible", "Answers the requests of OpenAI's client libraries.", "text, image", "text"),

	// Operators: nothing is trained.
	entry("prompter", "Prompter", "Puts the input into a prompt template.", "text", "text"),
	entry("rag-prompter", "RAG Prompter", "Fills a prompt with what a search in the app's inputs finds.", "text", "text"),
	entry("concept-thresholder", "Concept Thresholder", "Passes on concepts above or below a threshold.", "concepts", "concepts"),
	entry("region-thresholder", "Region Thresholder", "Passes on regions whose concepts pass a threshold.", "regions[...].concepts", "regions[...].concepts"),
	entry("random-sample", "Random Sampler", "Passes on a random share of the inputs.", "any", "any"),
	entry("concept-synonym-mapper", "Concept Synonym Mapper", "Replaces concepts by their synonyms in the app's knowledge graph.", "concepts", "concepts"),
	entry("regex-based-classifier", "Regex-Based Classifier", "Gives a text a concept where a regular expression matches.", "text", "concepts"),
	entry("language-id-operator", "Language Identification Operator", "Tells the language of a text.", "text", "concepts"),
	entry("barcode-operator", "Barcode Operator", "Finds bar codes and QR codes in an image and reads them.", "image", "regions[...].text"),
	entry("tesseract-operator", "Tesseract Operator", "Reads the text of an image with the Tesseract engine.", "image", "text"),
	entry("text-aggregation-operator", "Text Aggregation Operator", "Joins the texts of regions in reading order.", "regions[...].text", "text"),
	entry("image-crop", "Image Cropper", "Cuts each region out of the image.", "image, regions", "regions[...].image"),
	entry("image-tiler", "Image Tiler", "Cuts a large image into tiles of one size.", "image", "regions[...].image"),
	entry("object-counter", "Object Counter", "Counts regions by concept.", "regions[...].concepts", "metadata"),
	entry("centroid-tracker", "Centroid Tracker", "Follows objects through a video by the distance of their centres.", "frames[...].regions", "frames[...].regions[...].track_id"),
	entry("byte-tracker", "BYTE Tracker", "Follows objects through a video, doubtful detections included.", "frames[...].regions", "frames[...].regions[...].track_id"),
	entry("kalman-reid-tracker", "Kalman Reid Tracker", "Follows objects by their motion and finds them again by their looks.", "frames[...].regions", "frames[...].regions[...].track_id"),
	entry("annotation-writer", "Annotation Writer", "Stores what a workflow found as annotations.", "any", "any"),
}

// entry makes a model type; in and out are paths with commas between.
func entry(id, title, description, in, out string) modelType {
	return modelType{id, title, description, fields(in), fields(out)}
}

func fields(paths string) (fields []field) {
	for path := range strings.SplitSeq(paths, ", ") {
		fields = append(fields, field{path})
	}
	return fields
}
